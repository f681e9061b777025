"""llama.cpp's tokenizer on the real vocabularies of its source, and texts that aim at it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.worker.llamacpp import library
from edged.worker.llamacpp.vocabulary import Vocab
from tests.llamacpp.support import needs_llama_cpp
from tests.models import UnavailableError
from tests.models.source import llama_cpp_vocabulary

pytestmark = needs_llama_cpp

NAMES = ["qwen2", "llama-bpe", "llama-spm", "phi-3", "gemma-4", "deepseek-llm", "falcon"]
LONG = 200_000

# In a process of its own: when this fails, it ends with a segmentation fault.
TOKENIZE = f"""
import sys, threading
from tests.llamacpp.test_vocabulary import load

vocab = load(sys.argv[1])

def work():
    for text in ("a", " ", "1", "!", "é", "a1", "\\n"):
        assert vocab.tokenize([(text * {LONG}, True)], wrap=True)

thread = threading.Thread(target=work)  # the stack of a thread, as in the worker
thread.start()
thread.join()
print("alive")
"""


def path_of(name: str) -> Path:
    try:
        return llama_cpp_vocabulary(name)
    except UnavailableError as error:
        pytest.skip(str(error))


def load(path: str) -> Vocab:
    lib = library.open_library()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(path.encode(), params)
    assert model
    return Vocab(lib, model, frozenset())


@pytest.fixture(params=NAMES)
def vocab(request: pytest.FixtureRequest) -> Iterator[Vocab]:
    return load(str(path_of(request.param)))


@pytest.mark.parametrize("name", ["deepseek-coder", "falcon", "gpt-neox"])
def test_endless_words_do_not_kill_the_process(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TOKENIZE, str(path_of(name))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "alive\n", f"status {done.returncode}: {done.stderr[-500:]}"


@pytest.mark.parametrize("special", [True, False])
def test_long_text_in_pieces_has_the_tokens_of_the_whole(vocab: Vocab, special: bool) -> None:
    turn = "".join(sorted(vocab.silent)[:3]) if special else ""
    text = "".join(f"{turn}Turn {i}: words, 数字 {i * 7}\n\n\tand 🦊 emoji…" for i in range(1500))
    assert len(text) > LONG / 4
    whole = vocab._tokenize(text, special=special, wrap=True)
    assert vocab.tokenize([(text, special)], wrap=True) == whole
    assert vocab.fewest(len(text)) <= len(whole)


def test_time_grows_with_the_text_and_not_with_its_square(vocab: Vocab) -> None:
    word = max(vocab.silent, key=len)
    pieces: list[int] = []
    whole = vocab._tokenize

    def count(text: str, *, special: bool, wrap: bool = False) -> list[int]:
        pieces.append(text.count(word))
        return whole(text, special=special, wrap=wrap)

    vocab._tokenize = count  # type: ignore[method-assign]
    tokens = vocab.tokenize([(word * 5000, True)], wrap=False)
    assert len(tokens) >= 5000
    assert sum(pieces) == 5000
    assert max(pieces) <= 256


def test_parts_are_joined_and_only_trusted_ones_hold_control_tokens(vocab: Vocab) -> None:
    word = max(vocab.silent, key=len)
    trusted = vocab._tokenize(word, special=True)
    plain = vocab._tokenize(word, special=False)
    assert len(trusted) == 1 != len(plain)
    assert vocab.tokenize([(word, True), (word, False)], wrap=False) == [*trusted, *plain]
