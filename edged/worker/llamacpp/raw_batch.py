"""`llama_batch` over numpy arrays, filled by hand: `add_sequence` numbers positions from 0."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt


class RawBatch:
    """Room for `n` tokens, each of one sequence. Belongs to the engine thread.

    The caller fills the arrays from the front and sets `raw.n_tokens`.
    """

    def __init__(self, lib: Any, n: int) -> None:
        self.tokens = np.zeros(n, np.int32)
        self.positions = np.zeros(n, np.int32)
        self.owners = np.zeros(n, np.int32)  # sequence ids
        self.outputs = np.zeros(n, np.int8)
        self._ones = np.ones(n, np.int32)
        self._owner_pointers = _pointers(self.owners)
        self.raw = _batch_over(
            lib,
            token=self.tokens,
            pos=self.positions,
            n_seq_id=self._ones,
            seq_id=self._owner_pointers,
            logits=self.outputs,
        )


class VectorBatch:
    """Vectors in the place of tokens, all of one sequence and without logits; for one decode."""

    def __init__(
        self,
        lib: Any,
        owner: int,
        positions: npt.NDArray[np.int32],
        vectors: npt.NDArray[np.float32],
    ) -> None:
        """`vectors`: (n, width); `positions`: (n,), or (4, n) for M-RoPE; both contiguous."""
        n = len(vectors)
        assert vectors.flags.c_contiguous
        assert positions.flags.c_contiguous
        owners, ones = np.full(n, owner, np.int32), np.ones(n, np.int32)
        pointers, outputs = _pointers(owners), np.zeros(n, np.int8)
        self._alive = (vectors, positions, owners, ones, pointers, outputs)
        self.raw = _batch_over(
            lib, embd=vectors, pos=positions, n_seq_id=ones, seq_id=pointers, logits=outputs
        )
        self.raw.n_tokens = n


def _pointers(owners: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
    start = owners.ctypes.data
    return np.arange(start, start + 4 * len(owners), 4, dtype=np.uint64)


def _batch_over(lib: Any, **arrays: npt.NDArray[Any]) -> Any:
    """Return a `llama_batch` whose fields point into the arrays, which must live as long."""
    raw = lib.llama_batch()
    for field, array in arrays.items():
        pointer = type(getattr(raw, field))
        setattr(raw, field, ctypes.cast(array.ctypes.data, pointer))
    return raw
