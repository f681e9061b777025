"""edged's choice against llama.cpp's own samplers, chained in llama-server's order."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest

from edged.protocol import Sampling
from edged.worker.llamacpp import library
from edged.worker.llamacpp.sampling import Row, Sampler
from tests.llamacpp.support import needs_llama_cpp

pytestmark = needs_llama_cpp

SIZE = 5000
PROMPT = [int(i) for i in np.random.default_rng(5).integers(0, SIZE, 100)]


def theirs(row: Row, said: dict[str, Any]) -> dict[int, float]:
    """Return the logits of the tokens that llama.cpp's chain keeps, before temperature."""
    lib = library.open_library()
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    repeat = said.get("repeat_penalty", 1.0)
    stages = [
        lib.llama_sampler_init_penalties(len(row), 64, repeat, 0.0, 0.0),
        lib.llama_sampler_init_top_k(said.get("top_k", 0)),
        lib.llama_sampler_init_typical(said.get("typical_p", 1.0), 1),
        lib.llama_sampler_init_top_p(said.get("top_p", 1.0), 1),
        lib.llama_sampler_init_min_p(said.get("min_p", 0.0), 1),
    ]
    for stage in stages:
        lib.llama_sampler_chain_add(chain, stage)
    for token in PROMPT:
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


def ours(row: Row, said: dict[str, Any]) -> dict[int, float]:
    sampler = Sampler(Sampling(**said), prompt=PROMPT)
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
