"""edged's choice against llama.cpp's own samplers, chained in llama-server's order."""

from __future__ import annotations

import ctypes
import functools
import math
import random
from typing import Any

import numpy as np
import pytest

from edged.protocol import DEFAULTS, Sampling
from edged.worker.llamacpp import library
from edged.worker.llamacpp.dry import Dry, find_breakers, wanted
from edged.worker.llamacpp.sampling import NoChoiceError, Row, Sampler
from edged.worker.llamacpp.vocabulary import Vocab
from tests.llamacpp.support import EDGE_GUIDE, needs_llama_cpp

pytestmark = needs_llama_cpp

SIZE = 5000
PROMPT = [int(i) for i in np.random.default_rng(5).integers(0, SIZE, 100)]


@functools.cache
def vocabulary() -> Vocab:
    """The vocabulary of edge-guide, without its model."""
    lib = library.open_library()
    settings = lib.llama_model_default_params()
    settings.vocab_only = True
    model = lib.llama_model_load_from_file(str(EDGE_GUIDE).encode(), settings)
    return Vocab(lib, model, frozenset())


def theirs(row: Row, said: dict[str, Any], text: list[int] = PROMPT) -> dict[int, float]:
    """Return the logits of the tokens that llama.cpp's chain keeps, before temperature."""
    lib = library.open_library()
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    repeat = said.get("repeat_penalty", 1.0)
    words = [word.encode() for word in said.get("dry_sequence_breakers", [])]
    stages = [
        lib.llama_sampler_init_penalties(len(row), 64, repeat, 0.0, 0.0),
        lib.llama_sampler_init_dry(
            vocabulary()._vocab,
            said.get("dry_multiplier", 0.0),
            said.get("dry_base", 1.75),
            said.get("dry_allowed_length", 2),
            said.get("dry_penalty_last_n", 0),
            (ctypes.c_char_p * len(words))(*words),
            len(words),
        ),
        lib.llama_sampler_init_top_k(said.get("top_k", 0)),
        lib.llama_sampler_init_typical(said.get("typical_p", 1.0), 1),
        lib.llama_sampler_init_top_p(said.get("top_p", 1.0), 1),
        lib.llama_sampler_init_min_p(said.get("min_p", 0.0), 1),
        lib.llama_sampler_init_xtc(
            said.get("xtc_probability", 0.0), said.get("xtc_threshold", 0.1), 0, 1
        ),
    ]
    for stage in stages:
        lib.llama_sampler_chain_add(chain, stage)
    for token in text:
        lib.llama_sampler_accept(chain, token)
    data = (lib.llama_token_data * len(row))()
    for i, logit in enumerate(row.tolist()):
        data[i].id, data[i].logit, data[i].p = i, logit, 0.0
    array = lib.llama_token_data_array(
        data=ctypes.cast(data, type(lib.llama_token_data_array().data)),
        size=len(row),
        selected=-1,
        sorted=False,
    )
    lib.llama_sampler_apply(chain, ctypes.byref(array))
    kept = {array.data[i].id: array.data[i].logit for i in range(array.size)}
    lib.llama_sampler_free(chain)
    return kept


def ours(
    row: Row, said: dict[str, Any], text: list[int] = PROMPT, n_prompt: int = len(PROMPT)
) -> dict[int, float]:
    """The same from our own sampler, after a prompt of `n_prompt` tokens and the rest as answer."""
    sampling = Sampling(**said).over(DEFAULTS)
    spelling = [vocabulary().spelling(t) for t in range(vocabulary().n_tokens)]
    breakers = find_breakers(
        said.get("dry_sequence_breakers", []),
        spelling,
        lambda word: vocabulary().tokenize([(word, False)], wrap=False),
    )
    dry = Dry(sampling, text[:n_prompt], breakers, context=1 << 20) if wanted(sampling) else None
    sampler = Sampler(sampling, prompt=text[:n_prompt], dry=dry)
    for token in text[n_prompt:]:
        sampler.take(token)
    row = row.copy()
    sampler._adjust(row)
    ids, logits = sampler._narrow(row)
    chosen = range(len(row)) if ids is None else ids.tolist()
    return {i: x for i, x in zip(chosen, logits.tolist(), strict=True) if math.isfinite(x)}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
@pytest.mark.parametrize(
    "said",
    [
        {},
        {"top_k": 1},
        {"top_k": 40},
        {"top_p": 0.9},
        {"min_p": 0.05},
        {"typical_p": 0.8},
        {"repeat_penalty": 1.3},
        {"repeat_penalty": 1.1, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"xtc_probability": 1.0, "xtc_threshold": 0.1, "min_p": 0.02},
        {"xtc_probability": 1.0, "xtc_threshold": 0.6},
        {"xtc_probability": 1.0, "xtc_threshold": 0.0005, "top_k": 50, "top_p": 0.9},
        {"repeat_penalty": 1.2, "top_k": 300, "typical_p": 0.7, "top_p": 0.8, "min_p": 0.1},
    ],
)
def test_kept_tokens_are_those_of_llama_cpp(said: dict[str, Any], spread: float, seed: int) -> None:
    row = np.random.default_rng(seed).normal(0, spread, SIZE).astype(np.float32)
    mine, its = ours(row, said), theirs(row, said)
    # Sums of floats in another order: the last token on the border may be in or out.
    assert len(mine.keys() ^ its.keys()) <= 1
    shared = list(mine.keys() & its.keys())
    assert [mine[i] for i in shared] == pytest.approx([its[i] for i in shared], rel=1e-6)


DRY = {"dry_multiplier": 0.8, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": 4096}


def repeating_text(dice: random.Random, n: int) -> list[int]:
    """Tokens that repeat their own passages, with the tokens of breakers among them."""
    vocab = vocabulary()
    few = dice.sample(range(vocab.n_tokens), 12)
    few += vocab.tokenize([('a\nb: "c" * end of line\n', False)], wrap=False)
    text: list[int] = []
    while len(text) < n:
        if len(text) > 10 and dice.random() < 0.4:
            start = dice.randrange(len(text) - 5)
            text += text[start : start + dice.randrange(2, 30)]
        else:
            text.append(dice.choice(few))
    return text[:n]


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"dry_sequence_breakers": ["\n", ":", '"', "*"]},
        {"dry_sequence_breakers": ["end of line", 'c" *', "a\nb"]},
        {"dry_allowed_length": 0, "dry_penalty_last_n": 20},
        {"dry_allowed_length": 1, "dry_base": 3.0, "dry_multiplier": 2.0},
        {"dry_penalty_last_n": 37, "dry_sequence_breakers": ["\n"], "dry_base": 1.0},
    ],
)
def test_dry_lowers_the_tokens_that_llama_cpp_lowers(more: dict[str, Any], seed: int) -> None:
    dice = random.Random(seed)
    n = dice.randrange(1, 300)
    text = repeating_text(dice, n)
    row = np.random.default_rng(seed).normal(0, 2, vocabulary().n_tokens).astype(np.float32)
    said = DRY | more
    mine, its = ours(row, said, text, dice.randrange(n)), theirs(row, said, text)
    assert mine == pytest.approx(its, rel=1e-5, abs=1e-4)
    if not more and n > 200:
        assert its != pytest.approx(theirs(row, {}, text)), "the text repeats nothing"


def test_answer_does_not_end_before_its_min_tokens() -> None:
    said = Sampling(temperature=0.0, min_tokens=2)
    sampler = Sampler(said, prompt=[1], ends=[7], stops=[5])
    row = np.zeros(10, np.float32)
    row[[7, 5, 3]] = [3, 2, 1]
    assert [sampler.sample(row.copy()) for _ in range(4)] == [3, 3, 7, 7]


def test_xtc_takes_the_likeliest_away_for_greedy_choices_too() -> None:
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    said = Sampling(temperature=0.0, xtc_probability=1.0, xtc_threshold=0.15)
    assert Sampler(said, prompt=[0]).sample(row.copy()) == 2
    rarely = Sampling(temperature=0.0, xtc_probability=0.25, xtc_threshold=0.15, seed=1)
    sampler = Sampler(rarely, prompt=[0])
    chosen = [sampler.sample(row.copy()) for _ in range(400)]
    assert set(chosen) == {0, 2}
    assert 60 < chosen.count(2) < 140


def test_row_without_a_choice_is_told() -> None:
    row = np.full(10, -np.inf, np.float32)
    with pytest.raises(NoChoiceError):
        Sampler(Sampling(), prompt=[1]).sample(row)
