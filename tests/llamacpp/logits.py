"""The logits that the engine chose from, beside those of llama.cpp asked in the plainest way.

In llama.cpp the last bits of a logit depend on the batch (which kernel, in which order a sum is
taken) and on where in the pool the cells lie. `precise` takes away what makes more of them: without
flash attention, which sums in half floats, and with a KV of float32 the difference stays below
1e-4 of a spread of 2.4; any wrong position, cell or state is seen at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from edged.protocol import Generate, Launch
from edged.worker.llamacpp import library
from edged.worker.llamacpp.engine import LlamaCppEngine

Rows = npt.NDArray[np.float32]


def precise(launched: Launch) -> Launch:
    """Return the same launch with sums and KV in float32."""
    settings = launched.llamacpp
    assert settings is not None
    settings = replace(settings, kv_type="f32", flash_attention="off")
    return replace(launched, llamacpp=settings)


class Plain:
    """llama.cpp through its own functions: one fresh context and one decode for each text."""

    def __init__(self, launched: Launch) -> None:
        assert launched.llamacpp is not None
        self._settings = launched.llamacpp
        self._lib = library.open_library()
        path = Path(launched.path)
        self._keep, self._model = library.load_model(self._lib, path, 0, lambda _: True)
        self._n_vocab = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))

    def rows(self, tokens: list[int], batch: int | None = None) -> Rows:
        """Return the logits behind each of the tokens: (tokens, vocabulary).

        `batch`: how many of them llama.cpp computes at once; all, if it is not said.
        """
        lib, n = self._lib, len(tokens)
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = n
        params.n_ubatch = batch or n
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = library.FLASH_ATTENTION[self._settings.flash_attention]
        params.type_k = params.type_v = library.KV_TYPES[self._settings.kv_type]
        context = lib.llama_init_from_model(self._model, params)
        assert context
        raw = lib.llama_batch_init(n, 0, 1)
        try:
            for i, token in enumerate(tokens):
                raw.token[i], raw.pos[i], raw.logits[i] = token, i, True
                raw.n_seq_id[i], raw.seq_id[i][0] = 1, 0
            raw.n_tokens = n
            assert lib.llama_decode(context, raw) == 0
            logits = lib.llama_get_logits(context)
            rows: Rows = np.ctypeslib.as_array(logits, shape=(n, self._n_vocab)).copy()
            return rows
        finally:
            lib.llama_batch_free(raw)
            lib.llama_free(context)

    def close(self) -> None:
        """Free the model."""
        self._lib.llama_model_free(self._model)


@contextlib.contextmanager
def plain(launched: Launch) -> Iterator[Plain]:
    """Open llama.cpp on a launch's file, KV type and attention."""
    opened = Plain(launched)
    try:
        yield opened
    finally:
        opened.close()


@dataclass
class Heard:
    """One request: its prompt, what it chose, and from which logits."""

    prompt: list[int]
    chosen: list[int] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)

    def difference(self, peer: Plain) -> float:
        """Return the largest difference of a logit to llama.cpp's own behind the same tokens."""
        assert self.rows
        expected = peer.rows(self.prompt + self.chosen[:-1])[len(self.prompt) - 1 :]
        return float(np.abs(np.stack(self.rows) - expected).max())


@contextlib.contextmanager
def listening(engine: LlamaCppEngine) -> Iterator[dict[int, Heard]]:
    """Hear all requests made meanwhile, by their id."""
    heard: dict[int, Heard] = {}
    prepare = engine._preparer.prepare

    def prepare_and_listen(one: Generate) -> Any:
        prepared = prepare(one)
        found = heard[one.id] = Heard(list(prepared.sequence.tokens))
        sample = prepared.sampler.sample

        def listen(row: Rows) -> int:
            found.rows.append(row.copy())
            token = sample(row)
            found.chosen.append(token)
            return token

        prepared.sampler.sample = listen
        return prepared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._preparer, "prepare", prepare_and_listen)
        yield heard
