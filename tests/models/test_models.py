"""The models that other tests rely on load, say something, or are refused."""

import math

import pytest

from tests.models import KINDS, TRAITS, UnavailableError, broken, tiny
from tests.models.broken import Kind
from tests.models.tiny import WRITING, Trait

llama_cpp = pytest.importorskip("llama_cpp")
READING = tuple(trait for trait in TRAITS if trait not in WRITING)


@pytest.fixture(autouse=True)
def _available() -> None:
    try:
        tiny("plain")
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("trait", WRITING)
def test_tiny_model_generates_varied_text(trait: Trait) -> None:
    model = llama_cpp.Llama(str(tiny(trait)), n_ctx=256, verbose=False)
    tokens = []
    for token in model.generate(model.tokenize(b"Hello, how are you?"), temp=0.0):
        tokens.append(token)
        if len(tokens) == 24:
            break
    model.close()
    assert len(set(tokens)) > 12
    assert model.token_eos() not in tokens


@pytest.mark.parametrize("trait", READING)
def test_tiny_model_without_text_embeds(trait: Trait) -> None:
    model = llama_cpp.Llama(str(tiny(trait)), n_ctx=256, embedding=True, verbose=False)
    one, other = (model.embed(text) for text in ("A cat sat here.", "Prices rose again."))
    model.close()
    if trait.startswith("rerank"):  # one score; what `embed` returns behind it was never written
        one, other = one[:1], other[:1]
    assert all(math.isfinite(value) for value in one)
    assert one != other


@pytest.mark.parametrize("kind", KINDS)
def test_broken_model_is_refused(kind: Kind) -> None:
    with pytest.raises((ValueError, OSError)):
        llama_cpp.Llama(str(broken(kind)), n_ctx=64, verbose=False)
