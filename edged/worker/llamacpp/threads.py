"""How many threads compute a step, on a box that other programs use as well.

Pure: no clock, no file, no thread. ggml's threads meet at a barrier some hundred times in a step,
so one of them that waits for a core holds up all. What others take of the box (`box_load.py`) says
at once which count to try; how long the steps take with it and with the count before decides.
Without such a sign other counts are tried as well, ever more rarely, so that a quiet box loses less
than a hundredth to it: that finds the count for cores of two speeds, and for programs whose nice
value lets ours go first. Not in steps that read a prompt while streams wait for them, nor in those
that take long anyway: a count that is too small doubles such a step, which all streams show as a
stall, or adds seconds to the time to the first token.

Times are in s; the clock that intervals are measured on counts the time of steps only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WINDOW_S = 0.3  # how long a count is tried, unless its steps are longer
_FEWEST_STEPS = 3
_LONG_STEP_S = 0.6  # one of these is a window of its own
_WARM_S = 0.1  # the first step with another count is not counted where steps are shorter
_ROUNDS = 2  # of both counts, where nothing but the calendar asks
_MOST_ROUNDS = 5  # until both counts have had steps of the same kind
_BETTER = 0.95  # of the other count's time, or a change is not worth it
_EVEN = 1.02  # is good enough to leave a core to the program that takes it
_HOPELESS = 1.25  # of the known time: the trial ends at once
_SLOWER = 1.4  # than is known for the count in use: look for another …
_SUSTAINED_S = 0.5  # … after steps of so much time, those that were not slow taken off
_WEIGHT = 0.2  # of the newest step
_FIRST_TRIAL_S = 30.0  # nothing known against the count in use
_AFTER_CHANGE_S = 8.0
_PATIENCE = 20  # a trial that took long and was lost is not repeated before so much more time
_RAREST_TRIAL_S = 480.0
_HOLD_S = 1.0  # after a trial that was lost; doubles with each
_LONGEST_HOLD_S = 16.0
_MARGIN = 0.1  # of a core: below a threshold before it counts as undercut
_MANY = 8  # threads from which on trials make larger steps as well


def allowance(most: int, cpus: int, taken: float, current: int) -> int:
    """Return how many of `most` threads find a core, while others take `taken` of `cpus` CPUs.

    A part of a core costs one thread where waiting for it costs all of them more. `current`: the
    last answer; it stays where `taken` is near a threshold.
    """
    fewer = _allowance(most, cpus, taken)
    return fewer if fewer < current else max(current, _allowance(most, cpus, taken + _MARGIN))


def _allowance(most: int, cpus: int, taken: float) -> int:
    missing = max(0.0, taken - (cpus - most))
    left = most - int(missing)
    if left > 1 and missing % 1 >= max(0.15, 0.7 / left):
        left -= 1
    return max(1, left)


@dataclass(slots=True)
class _Window:
    """Steps with one count: mean costs by kind."""

    n_steps: int = 0
    seconds: float = 0.0
    costs: dict[int, tuple[int, float]] = field(default_factory=dict)  # kind → (steps, sum)

    def add(self, kind: int, cost: float) -> None:
        n, total = self.costs.get(kind, (0, 0.0))
        self.costs[kind] = (n + 1, total + cost)

    def against(self, other: _Window) -> float | None:
        """Return this one's time over the other's; None without steps of the same kind."""
        ratios = [
            (min(n, m), (mine / n) / (theirs / m))
            for kind, (n, mine) in self.costs.items()
            for m, theirs in (other.costs.get(kind, (0, 0.0)),)
            if m and theirs > 0
        ]
        weight = sum(w for w, _ in ratios)
        return sum(w * ratio for w, ratio in ratios) / weight if weight else None


@dataclass(slots=True)
class _Trial:
    """`other` and `settled` in turns; a turn is over after `WINDOW_S`."""

    other: int
    rounds: int
    asked: bool  # the box asks for it; what was known before says nothing
    turn: int = 0  # even: other, odd: settled
    turn_s: float = 0.0
    turn_steps: int = 0
    other_s: float = 0.0  # spent with `other`
    ours: _Window = field(default_factory=_Window)  # of `other`
    theirs: _Window = field(default_factory=_Window)  # of `settled`


class Count:
    """The number of threads for one phase: `now` is what the next step takes."""

    def __init__(self, most: int) -> None:
        assert most >= 1
        self.most = most
        self.now = self.settled = self.wanted = most
        self._trial: _Trial | None = None
        self._due_s = self._interval_s = _FIRST_TRIAL_S
        self._hold_s, self._hold_until_s = _HOLD_S, 0.0
        self._known: dict[int, float] = {}  # kind → what a step takes with `settled`
        self._recent: dict[int, float] = {}
        self._slow_s = 0.0
        self._next = 0  # which of the other counts is tried next

    def want(self, wanted: int, clock_s: float) -> None:
        """Take what the box allows; another count than before is tried at once."""
        if wanted == self.wanted:
            return
        self.wanted = wanted
        self._known.clear()
        self._recent.clear()
        if wanted == self.settled:
            self._keep(clock_s)
        elif clock_s >= self._hold_until_s:
            self._begin(wanted, rounds=1, asked=True)
        else:
            self._due_s = min(self._due_s, self._hold_until_s)

    def spares(self, kind: int, units: int, clock_s: float, *, urgent: bool) -> bool:
        """Tell if a step is not to pay for a trial: `units` of its kind, each with its cost.

        What others take of the box is always reason enough, and so is that no trial was possible
        for minutes.
        """
        overdue = clock_s - self._due_s > _RAREST_TRIAL_S
        if self.wanted != self.settled or (overdue and not urgent):
            return False
        return urgent or units * self._recent.get(kind, 0.0) > _LONG_STEP_S

    def step(self, kind: int, cost: float, seconds: float, clock_s: float) -> None:
        """Learn from a step of `seconds`; steps of one `kind` compare by their `cost`."""
        if self._trial is not None:
            self._judge(self._trial, kind, cost, seconds, clock_s)
            return
        recent = self._recent[kind] = _mix(self._recent.get(kind), cost)
        known = self._known.setdefault(kind, recent)
        if recent < known:
            self._known[kind] = recent
        slow = cost > _SLOWER * known
        self._slow_s = max(0.0, self._slow_s + (seconds if slow else -seconds))
        if clock_s >= self._due_s:
            self._look_around()
        elif self._slow_s > _SUSTAINED_S and clock_s >= self._hold_until_s:
            self._known[kind] = recent
            fewer = self.wanted if self.wanted != self.settled else self.settled - 1
            if fewer >= 1:
                self._begin(fewer, rounds=1, asked=True)

    def _look_around(self) -> None:
        """Try the next of the counts around the one in use."""
        now = self.settled
        near = [self.wanted, now - 1, now + 1]
        if now >= _MANY:
            near += [now * 3 // 4, now // 2, self.most]
        others = [n for n in dict.fromkeys(near) if n != now and 1 <= n <= self.most]
        if others:
            self._next += 1
            self._begin(others[self._next % len(others)], rounds=_ROUNDS, asked=False)

    def _begin(self, other: int, *, rounds: int, asked: bool) -> None:
        self._trial = _Trial(other, rounds, asked)
        self._slow_s = 0.0
        self.now = other

    def _judge(self, trial: _Trial, kind: int, cost: float, seconds: float, clock_s: float) -> None:
        first = trial.turn_steps == 0
        trial.turn_steps += 1
        trial.turn_s += seconds
        if trial.turn % 2:
            window = trial.theirs
        else:
            window = trial.ours
            trial.other_s += seconds
        if not first or seconds >= _WARM_S:
            window.add(kind, cost)
            if not trial.asked and self._hopeless(trial, kind):
                self._refuse(trial, clock_s)
                return
        enough = trial.turn_steps > _FEWEST_STEPS and trial.turn_s >= WINDOW_S
        if not enough and trial.turn_s < _LONG_STEP_S:
            return
        trial.turn += 1
        trial.turn_s, trial.turn_steps = 0.0, 0
        if trial.turn % 2 == 0 and trial.turn >= 2 * trial.rounds and self._decide(trial, clock_s):
            return
        self.now = self.settled if trial.turn % 2 else trial.other

    def _hopeless(self, trial: _Trial, kind: int) -> bool:
        n, total = trial.ours.costs.get(kind, (0, 0.0))
        recent = self._recent.get(kind)
        enough = n >= _FEWEST_STEPS or trial.turn_s >= _LONG_STEP_S
        return recent is not None and enough and n > 0 and total / n > _HOPELESS * recent

    def _decide(self, trial: _Trial, clock_s: float) -> bool:
        """End the trial if it says something."""
        ratio = trial.ours.against(trial.theirs)
        if ratio is None:
            if trial.turn < 2 * _MOST_ROUNDS:
                return False
            ratio = 1.0
        enough = _EVEN if trial.other == self.wanted < self.settled else _BETTER
        if ratio > enough:
            self._refuse(trial, clock_s)
            return True
        self._trial = None
        self.now = self.settled = trial.other
        self._known = {kind: total / n for kind, (n, total) in trial.ours.costs.items()}
        self._recent = dict(self._known)
        self._hold_s = _HOLD_S
        self._interval_s = _FIRST_TRIAL_S if self.now == self.most else _AFTER_CHANGE_S
        self._due_s = clock_s + self._interval_s
        return True

    def _refuse(self, trial: _Trial, clock_s: float) -> None:
        self._hold_until_s = clock_s + self._hold_s
        self._hold_s = min(2 * self._hold_s, _LONGEST_HOLD_S)
        again_s = max(2 * self._interval_s, _PATIENCE * trial.other_s)
        self._interval_s = min(again_s, _RAREST_TRIAL_S)
        self._keep(clock_s)

    def _keep(self, clock_s: float) -> None:
        self._trial = None
        self.now = self.settled
        self._due_s = clock_s + self._interval_s


def _mix(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)


# ── both phases together ──

_LOG_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Change:
    """The counts settled on, before and now, and why."""

    before: tuple[int, int]
    now: tuple[int, int]
    reason: str


class Threads:
    """The counts of decode and prefill. One owner: the engine thread."""

    def __init__(self, decode: int, prefill: int, cpus: int) -> None:
        """`decode`, `prefill`: the most threads of each phase; `cpus` that the process may use."""
        self.decode = Count(decode)
        self.prefill = Count(prefill)
        self.taken = 0.0  # CPUs that others take
        self._cpus = max(cpus, decode, prefill)
        self._clock_s = 0.0  # of steps
        self._told = self.settled
        self._told_s: float | None = None
        self._spared = False  # the step under way

    @property
    def now(self) -> tuple[int, int]:
        """(decode, prefill) for the next step, if it may pay for a trial."""
        return self.decode.now, self.prefill.now

    def ahead(self, n_tokens: int, *, decoding: bool, urgent: bool = False) -> tuple[int, int]:
        """Return (decode, prefill) for the step that comes; `step` then tells what it took.

        `decoding`: it computes nothing of a prompt; `urgent`: it does, and streams wait for it.
        """
        kind = n_tokens.bit_length()
        self._spared = not decoding and self.prefill.spares(
            kind, n_tokens, self._clock_s, urgent=urgent
        )
        return self.decode.now, self.prefill.settled if self._spared else self.prefill.now

    @property
    def settled(self) -> tuple[int, int]:
        """(decode, prefill), without what is only being tried."""
        return self.decode.settled, self.prefill.settled

    @property
    def reason(self) -> str:
        """Why one of them is less than it could be; empty where none is."""
        parts = [
            f"{count.most} → {count.settled} {name}"
            for name, count in (("threads", self.decode), ("for prompts", self.prefill))
            if count.settled < count.most
        ]
        if not parts:
            return ""
        busy = any(count.wanted < count.most for count in (self.decode, self.prefill))
        why = (
            f"other programs take {self.taken:.1f} of {self._cpus} CPUs"
            if busy
            else "measured to be faster"
        )
        return f"{', '.join(parts)}: {why}"

    def look(self, taken: float) -> None:
        """Take what others use of the CPUs, averaged over a fraction of a second."""
        self.taken = taken
        for count in (self.decode, self.prefill):
            count.want(allowance(count.most, self._cpus, taken, count.wanted), self._clock_s)

    def step(self, n_tokens: int, seconds: float, *, decoding: bool) -> None:
        """Learn from a step; `decoding`: it computed nothing of a prompt."""
        self._clock_s += seconds
        if decoding:
            self.decode.step(n_tokens, seconds, seconds, self._clock_s)
        elif not self._spared:
            kind = n_tokens.bit_length()
            self.prefill.step(kind, seconds / n_tokens, seconds, self._clock_s)

    def news(self, now_s: float) -> Change | None:
        """Return a change that was not told yet; not more often than every few seconds."""
        if self.settled == self._told:
            return None
        if self._told_s is not None and now_s - self._told_s < _LOG_EVERY_S:
            return None
        change = Change(self._told, self.settled, self.reason)
        self._told, self._told_s = self.settled, now_s
        return change
