"""Guesses from the text itself: what followed the last time these tokens stood here.

Pure. Answers that quote their prompt (code that is edited, JSON, summaries, retrieved passages)
repeat long runs of it; a guess costs a look into a table.
"""

from __future__ import annotations

_RUN = 3  # tokens that must have stood together before


class Lookup:
    """The runs of one sequence's tokens, and what came after each of them the last time.

    `tokens` is the sequence's own list, which only grows; it is read when a guess is wanted.
    """

    __slots__ = ("_after", "_n_read", "_tokens")

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._after: dict[tuple[int, ...], int] = {}  # run → the place behind it
        self._n_read = _RUN - 1

    def guess(self, n: int) -> list[int]:
        """Return up to `n` tokens that may come next; empty if the last run is new."""
        tokens, after = self._tokens, self._after
        end = len(tokens)
        for i in range(self._n_read, end - 1):  # the last run itself is not behind anything yet
            after[tuple(tokens[i - _RUN + 1 : i + 1])] = i + 1
        self._n_read = max(self._n_read, end - 1)
        at = after.get(tuple(tokens[end - _RUN :]))
        return [] if at is None else tokens[at : at + n]
