"""How many guessed tokens are worth computing beside the certain one.

Pure. A step with a sequence's next token and `d` guesses for those after it yields 1 + (guesses
that were right) tokens, and takes longer than a step without them. How much longer depends on
model, box and what else runs on it, and how often guesses are right on the text; both are learned
from the steps themselves. Where guessing does not pay, none are made.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

MOST = 8  # guesses for one sequence in a step
_WEIGHT = 0.2  # of the newest measurement
_STALE = 400  # steps after which a measurement counts no more: the box may have changed
_KEPT = 0.9  # of what is remembered of a source, for each guess judged
_FIRST = (3.0, 5.0)  # right and judged, before anything was
_FORGOTTEN = 0.998  # of what is remembered, for each step without guesses: tried again some day
_MARGIN = 1.05  # a gain that is smaller is noise


class Odds:
    """How often the guesses for one sequence were right, the newest counting most."""

    __slots__ = ("_judged", "_right")

    def __init__(self) -> None:
        self._right, self._judged = _FIRST

    @property
    def chance(self) -> float:
        """The chance of the next guess."""
        return self._right / self._judged

    def learn(self, *, guessed: int, right: int) -> None:
        """The first `right` of `guessed` tokens were right; what came after them was not judged."""
        for i in range(min(right + 1, guessed)):
            self._right = self._right * _KEPT + (i < right)
            self._judged = self._judged * _KEPT + 1

    def rest(self) -> None:
        """A step without guesses, as they did not pay."""
        right, judged = _FIRST
        self._right = right + (self._right - right) * _FORGOTTEN
        self._judged = judged + (self._judged - judged) * _FORGOTTEN


class Costs:
    """What a step of `m` tokens takes, in s; its unknown sizes are taken for cheap, and tried."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._seen_at: dict[int, int] = {}
        self._step = 0

    def observe(self, m: int, seconds: float) -> None:
        """Learn from a finished step of `m` tokens, none of them a prompt's."""
        self._step += 1
        old = self._seconds.get(m)
        fresh = old is not None and self._step - self._seen_at[m] < _STALE
        self._seconds[m] = old + _WEIGHT * (seconds - old) if old and fresh else seconds
        self._seen_at[m] = self._step

    def forget(self) -> None:
        """Everything may be different now (other threads)."""
        self._seconds.clear()
        self._seen_at.clear()

    def of(self, m: int) -> float | None:
        """Return the cost of a step of `m` tokens; None as long as nothing smaller is known.

        Between two known sizes it lies on the line between them; above all of them it is taken
        for no more than the largest one.
        """
        known = sorted(k for k, at in self._seen_at.items() if self._step - at < _STALE)
        below = [k for k in known if k <= m]
        if not below:
            return None
        low = below[-1]
        above = next((k for k in known if k >= m), None)
        if above is None or above == low:
            return self._seconds[low]
        share = (m - low) / (above - low)
        return self._seconds[low] + share * (self._seconds[above] - self._seconds[low])


@dataclass(frozen=True, slots=True)
class Offer:
    """Guesses that are at hand, or can be had, for one sequence."""

    n: int
    chance: float  # of each of them, if those before it were right
    cost_s: float = 0.0  # of each of them, before the step


def stakes(costs: Costs, n_certain: int, offers: Many[Offer], *, most: int) -> list[int]:
    """Return how many guesses to take of each offer, `most` in all.

    `n_certain`: tokens of the step without guesses.
    """
    taken = [0] * len(offers)
    base = costs.of(n_certain)
    if base is None:
        return taken
    wins, m, spent_s, best = float(n_certain), n_certain, 0.0, n_certain / base
    for i in sorted(range(len(offers)), key=lambda i: -offers[i].chance):
        offer = offers[i]
        gain, won, chosen = 0.0, 0.0, 0
        for d in range(1, min(offer.n, MOST, n_certain + most - m) + 1):
            gain += offer.chance**d
            step_s = costs.of(m + d)
            assert step_s is not None
            rate = (wins + gain) / (step_s + spent_s + offer.cost_s * d)
            if rate > best * (1.0 if chosen else _MARGIN):
                best, chosen, won = rate, d, gain
        taken[i] = chosen
        m, wins, spent_s = m + chosen, wins + won, spent_s + offer.cost_s * chosen
    return taken
