"""Whose inputs share the next batch. Pure; belongs to the engine thread.

Every call gives one input in turn, so that a call of thousands holds up nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar


class Inputs:
    """The tokens of one call's inputs, and how many of them were handed out."""

    __slots__ = ("n_taken", "tokens")

    def __init__(self, tokens: Sequence[list[int]]) -> None:
        assert tokens
        self.tokens = tokens
        self.n_taken = 0


C = TypeVar("C", bound=Inputs)


class Packing(Generic[C]):
    """Calls with inputs that are not computed yet.

    A batch has at most `tokens` tokens and `sequences` inputs; an input that is longer makes a
    batch of its own.
    """

    def __init__(self, *, tokens: int, sequences: int) -> None:
        self._tokens = tokens
        self._sequences = sequences
        self._calls: deque[C] = deque()

    def __bool__(self) -> bool:
        """Tell whether there is anything to compute."""
        return bool(self._calls)

    def add(self, call: C) -> None:
        """Let a call take part."""
        self._calls.append(call)

    def drop(self, call: C) -> None:
        """Forget what a call still wants; one that wants nothing any more is no error."""
        if call in self._calls:
            self._calls.remove(call)

    def take(self) -> list[tuple[C, int]]:
        """Return the next batch as (call, index of the input); empty if there is none.

        A call whose input did not fit goes first the next time.
        """
        batch: list[tuple[C, int]] = []
        passed_over: list[C] = []
        room = self._tokens
        while self._calls and len(batch) < self._sequences and room > 0:
            call = self._calls.popleft()
            length = len(call.tokens[call.n_taken])
            if batch and length > room:
                passed_over.append(call)
                continue
            batch.append((call, call.n_taken))
            room -= length
            call.n_taken += 1
            if call.n_taken < len(call.tokens):
                self._calls.append(call)
        self._calls.extendleft(reversed(passed_over))
        return batch

    def put_back(self, batch: Sequence[tuple[C, int]]) -> None:
        """Take back inputs of the last batch, which were not computed: they go first."""
        for call, index in reversed(batch):
            if call not in self._calls:
                self._calls.appendleft(call)
            call.n_taken = min(call.n_taken, index)
