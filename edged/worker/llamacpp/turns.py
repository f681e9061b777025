"""Whose turn it is: sequences with the same adapters share steps, the others wait meanwhile.

Pure. llama.cpp applies adapters to a whole context, so a step has sequences of one set only, and
another set costs it a new graph: 1.5 ms on edge-guide, which is five of its steps, 5 ms on a 0.5B
model, a tenth of one. So a turn is at least `TURN_S` long, however short its steps. Who comes newly
waits for all who were there: a set has its turn again after one of each other, whatever comes.
"""

from __future__ import annotations

from collections.abc import Iterable

from edged.worker.llamacpp.sequence import Adapters

TURN_S = 0.03


class Turn:
    """One set of adapters that running sequences want."""

    __slots__ = ("adapters", "tokens_next")

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters
        self.tokens_next = False  # its last step computed a part of an image or sound


class Turns:
    """The sets in use, the next one first. One owner: the scheduler."""

    def __init__(self) -> None:
        self._line: list[Turn] = []
        self._spent_s = 0.0  # by the first one, in its present turn

    def of(self, wanted: Iterable[Adapters]) -> list[Turn]:
        """Return the turns of the sets that running sequences want, in the order to try them."""
        sets = dict.fromkeys(wanted)
        line = self._line
        if len(sets) == len(line) == 1 and line[0].adapters in sets:
            return line
        present = line[0] if line else None
        self._line = line = [turn for turn in line if turn.adapters in sets]
        known = {turn.adapters for turn in line}
        line += [Turn(adapters) for adapters in sets if adapters not in known]
        if not line or line[0] is not present:
            self._spent_s = 0.0
        elif self._spent_s >= TURN_S:
            line.append(line.pop(0))
            self._spent_s = 0.0
        return line

    def took(self, turn: Turn) -> None:
        """A step of this turn was planned: it is the present one now."""
        if self._line[0] is not turn:
            self._line.remove(turn)
            self._line.insert(0, turn)
            self._spent_s = 0.0

    def spent(self, seconds: float) -> None:
        """Count the time of a step of the present turn."""
        self._spent_s += seconds
