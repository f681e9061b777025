"""Waits that double, for whoever tries again: soon at first, and less and less often."""

from __future__ import annotations


class Doubling:
    """Waits in s, from `first_s` to `most_s`."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._next_s = first_s

    def next_s(self) -> float:
        """Return how long to wait before the next try."""
        wait_s = self._next_s
        self._next_s = min(2 * wait_s, self._most_s)
        return wait_s

    def reset(self) -> None:
        """Begin anew: something went well, or has changed."""
        self._next_s = self._first_s
