"""The logits that the engine chose from, beside those of llama.cpp asked in the plainest way."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edged.protocol import Generate
from edged.worker.llamacpp import library
from edged.worker.llamacpp.engine import LlamaCppEngine

Rows = npt.NDArray[np.float32]


class Plain:
    """llama.cpp through its own functions: one fresh context and one decode for each text."""

    def __init__(self, path: Path, *, exact: bool = False) -> None:
        self._exact = exact
        self._lib: Any = importlib.import_module("llama_cpp.llama_cpp")
        library.open_library()
        self._keep, self._model = library.load_model(self._lib, path, 0, lambda _: True)
        self._n_vocab = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))

    def rows(self, tokens: list[int]) -> Rows:
        """Return the logits behind each of the tokens: (tokens, vocabulary)."""
        lib, n = self._lib, len(tokens)
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n
        params.n_threads = params.n_threads_batch = 1
        if self._exact:
            params.flash_attn_type, params.type_k, params.type_v = 0, 0, 0
        context = lib.llama_init_from_model(self._model, params)
        assert context
        batch = lib.llama_batch_init(n, 0, 1)
        try:
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.n_tokens = n
            assert lib.llama_decode(context, batch) == 0
            logits = lib.llama_get_logits(context)
            return np.ctypeslib.as_array(logits, shape=(n, self._n_vocab)).copy()
        finally:
            lib.llama_batch_free(batch)
            lib.llama_free(context)

    def close(self) -> None:
        self._lib.llama_model_free(self._model)


@contextlib.contextmanager
def plain(path: Path, *, exact: bool = False) -> Iterator[Plain]:
    opened = Plain(path, exact=exact)
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

    def differences(self, peer: Plain) -> npt.NDArray[np.float32]:
        """Return the largest difference of each row to llama.cpp's own for the same tokens."""
        expected = peer.rows(self.prompt + self.chosen[:-1])[len(self.prompt) - 1 :]
        return np.abs(np.stack(self.rows) - expected).max(axis=1)


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
