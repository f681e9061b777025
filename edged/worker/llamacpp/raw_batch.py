"""A `llama_batch` over numpy arrays, filled by hand: `add_sequence` numbers positions from 0."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


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
        start = self.owners.ctypes.data
        self._owner_pointers = np.arange(start, start + 4 * n, 4, dtype=np.uint64)
        self.raw = lib.llama_batch()
        for field, array in (
            ("token", self.tokens),
            ("pos", self.positions),
            ("n_seq_id", self._ones),
            ("seq_id", self._owner_pointers),
            ("logits", self.outputs),
        ):
            pointer = type(getattr(self.raw, field))
            setattr(self.raw, field, ctypes.cast(array.ctypes.data, pointer))
