"""Decisions about a worker's life, apart from any process: hung, dead of what, when to try again.

Pure: the caller brings the clock (monotonic, s) and does what is decided.
"""

from __future__ import annotations

import math
import signal
from typing import Literal

from msgspec import Struct

from edged.doubling import Doubling
from edged.protocol import (
    EXIT_BAD_MODEL,
    EXIT_FAULT,
    EXIT_NO_ENGINE,
    EXIT_OK,
    Stats,
)


class Limits(Struct, frozen=True):
    """Every wait of a worker's life, in s (and one count)."""

    start_wait_s: float = 120.0  # a request waits this long for its model to be loaded
    queue_wait_s: float = 900.0  # … and this long for a place at a busy one
    drain_s: float = 300.0  # open requests of a model that leaves may finish in this time
    stop_s: float = 8.0  # from SIGTERM to SIGKILL; saving prefixes may take 3 of them
    load_silence_s: float = 300.0  # a load without any sign of progress is hung
    silence_s: float = 15.0  # a worker sends Stats every second
    progress_s: float = 60.0  # busy and computing, but no engine step
    stuck_s: float = 5.0  # busy, no engine step and no work either: not blamed sooner
    again_s: float = 0.1  # until a worker that had served well is started again
    first_backoff_s: float = 1.0
    most_backoff_s: float = 60.0
    stable_s: float = 60.0  # served this long: the next crash starts from the first back-off
    memory_retry_s: float = 15.0  # a startup model without room asks again
    round_s: float = 1.0  # between two looks at all workers
    watch_s: float = 0.1  # … at their memory while one of them may take more
    memory_wait_s: float = 60.0  # requests wait this long for memory that others hold
    stay_loads: float = 3.0  # a model that is in use stays for so many times its load, …
    stay_least_s: float = 1.0  # … but this long at least
    stay_most_s: float = 60.0  # … and no longer where another waits for its memory
    linger_s: float = 2.0  # unused for so long counts as out of use
    patience_s: float = 15.0  # then a model whose requests wait makes a busy one give way
    proving_s: float = 60.0  # a changed model that crashes twice in this time is taken back
    proof_s: float = 120.0  # for its first token, and for its probe
    probe_idle_s: float = 600.0  # a worker that nobody asked for so long is asked for one token
    poison_s: float = 600.0  # a request that killed the worker twice is refused for so long
    bad_starts: int = 5  # in a row, then the model is failed


# ── hung? ──

TICK_S = 1.0


_STEPS = 20  # before their distances say what is usual
_USUAL = 3.0  # times the longest step so far: what is longer is no step any more
_UNSEEN_S = 2 * TICK_S  # between a step and the look that finds it: not told from none
_WORKING = 0.03  # of a core; less is the rounding of the kernel's clock


class Work(Struct, frozen=True):
    """What the kernel knows of a worker: its loop is the first thread, its engine has the others.

    The loop answers for itself with frames, and works a little as long as it lives; so what it
    does is no sign of the engine's life.
    """

    engine_s: float  # CPU time so far, and a moment for each page that came from the disk
    loop_s: float
    engine_waits: bool = False  # for a CPU or for the disk, at this moment
    loop_waits: bool = False


class Steps:
    """How long the engine steps of one launch take; outlives its workers."""

    def __init__(self) -> None:
        self.seen = 0
        self.longest_s = 0.0

    def took(self, n: int, longest_s: float) -> None:
        """Learn from `n` steps."""
        self.seen += n
        self.longest_s = max(self.longest_s, longest_s)


class _Span:
    """Time that passed since something, as far as ticks have counted it."""

    def __init__(self) -> None:
        self.s = 0.0
        self._since = -math.inf

    def begin(self, now: float) -> None:
        """Count from this moment on, be it in the middle of a tick."""
        self.s, self._since = 0.0, now

    def add(self, now: float, elapsed: float) -> None:
        """Count a tick that ends now."""
        self.s += min(elapsed, max(0.0, now - self._since))


class Liveness:
    """Tells a hung worker from a busy one, fed with what was heard and a tick every TICK_S.

    An engine that computes, reads its weights from the disk or waits for a CPU that others hold
    makes progress that no frame tells: a step may be long on a box that does other work. It gets
    `progress_s`. One that does neither a step nor any work is stuck after three times its own
    longest step. `shows_work`: false where the kernel does not see all of it, as on a GPU; then
    its first steps get more time.

    It adds up ticks of at most two TICK_S each instead of subtracting times: when the daemon
    itself was stopped for a minute, or the box slept, no worker may be blamed for it.
    """

    def __init__(
        self, limits: Limits, steps: Steps | None = None, *, shows_work: bool = True
    ) -> None:
        self._limits = limits
        self._steps = steps or Steps()
        self._shows_work = shows_work
        self._ticked: float | None = None
        self._loaded = False
        self._silent = _Span()
        self._stuck = _Span()
        self._idle = _Span()  # of the stuck time: without any work either
        self._mute = _Span()  # while loading: neither a frame nor any work
        self._stats: Stats | None = None
        self._work: Work | None = None

    def loading(self, now: float) -> None:
        """Note that the load went on."""
        self._silent.begin(now)

    def ready(self, now: float) -> None:
        """Note that the load is over."""
        self._loaded = True
        self._silent.begin(now)

    def opened(self, now: float) -> None:
        """Note that a request came while none was open."""
        self._stuck.begin(now)
        self._idle.begin(now)

    def heard(self, now: float, stats: Stats | None = None) -> None:
        """Note a frame. While loading only `loading` counts: the loop alone proves nothing."""
        self._mute.begin(now)
        if self._loaded:
            self._silent.begin(now)
        if stats is None:
            return
        before, self._stats = self._stats, stats
        if before is None or stats.progress != before.progress:
            n_steps = max(1, stats.progress - before.progress) if before else 1
            self._steps.took(n_steps, stats.step_ms / 1e3)
            if self._stuck.s > _UNSEEN_S and self._ticked is not None:
                self._steps.took(0, self._stuck.s + min(now - self._ticked, 2 * TICK_S))
        elif stats.pulse == before.pulse:
            return
        self._stuck.begin(now)
        self._idle.begin(now)

    @property
    def is_stuck(self) -> bool:
        """True when nothing was heard of it since the last tick, and something is due."""
        return self._stuck.s > 0 or self._mute.s > 0

    @property
    def stuck_after_s(self) -> float:
        """How long it may do nothing while requests are open: learned from its own steps."""
        limits = self._limits
        least_s = limits.stuck_s
        if self._steps.seen < _STEPS and not (self._shows_work and self._work is not None):
            least_s = limits.silence_s
        return min(limits.progress_s, max(least_s, _USUAL * self._steps.longest_s))

    def tick(self, now: float, *, busy: bool, work: Work | None = None) -> str | None:
        """Return why the worker counts as hung, in words for the operator, or None.

        `work`: None where the kernel does not tell; then nothing counts as work.
        """
        elapsed = 0.0 if self._ticked is None else min(now - self._ticked, 2 * TICK_S)
        self._ticked = now
        self._silent.add(now, elapsed)
        engine, loop = self._who_worked(work, elapsed)
        if busy and self._loaded:
            self._stuck.add(now, elapsed)
        else:
            self._stuck.begin(now)
        # A loop that others keep from its CPU is silent, and the engine then gets no requests.
        if busy and self._loaded and not (engine or (loop and self._silent.s > _UNSEEN_S)):
            self._idle.add(now, elapsed)
        else:
            self._idle.begin(now)
        if self._loaded or engine or loop:
            self._mute.begin(now)
        else:
            self._mute.add(now, elapsed)
        return self._verdict()

    def _verdict(self) -> str | None:
        limits = self._limits
        if not self._loaded:
            if self._mute.s >= limits.silence_s:
                return f"hung: neither a word nor any work in {limits.silence_s:.0f} s of its load"
            if self._silent.s >= limits.load_silence_s:
                return f"hung: loading made no progress for {limits.load_silence_s:.0f} s"
        elif self._idle.s >= self.stuck_after_s:
            return (
                f"hung: requests open, but neither an engine step nor any work for "
                f"{self._idle.s:.0f} s; its longest step took {self._steps.longest_s:.1f} s"
            )
        elif self._silent.s >= limits.silence_s:
            return f"hung: not a sign of life for {limits.silence_s:.0f} s"
        elif self._stuck.s >= limits.progress_s:
            return f"hung: requests open, but no engine step for {limits.progress_s:.0f} s"
        return None

    def _who_worked(self, work: Work | None, elapsed: float) -> tuple[bool, bool]:
        """Return whether the engine's threads did anything since the last tick, and the loop."""
        before, self._work = self._work, work
        if work is None or before is None:
            return False, False
        least_s = _WORKING * elapsed
        return (
            work.engine_waits or work.engine_s - before.engine_s > least_s,
            work.loop_waits or work.loop_s - before.loop_s > least_s,
        )


# ── dead of what? ──

_SIGNALS: dict[int, str] = {
    signal.SIGKILL: "by the kernel for lack of memory, most likely (`dmesg` tells), or by hand",
    signal.SIGILL: "the engine uses an instruction that this CPU does not have",
    signal.SIGBUS: "the model file was truncated or replaced while in use, or its disk failed",
    signal.SIGSEGV: "a memory fault in the engine",
    signal.SIGABRT: "the engine gave up on a failed check",
    signal.SIGFPE: "an arithmetic fault in the engine",
    signal.SIGTERM: "somebody asked it to stop",
}
_EXIT_CODES = {
    EXIT_OK: "without being asked to",
    EXIT_FAULT: "the engine was in a state that it could not repair",
    EXIT_NO_ENGINE: "the engine's library is not installed",
    EXIT_BAD_MODEL: "the model file cannot be used",
}


def cause_of_death(returncode: int, last_stderr_line: str = "") -> str:
    """Return in plain words how a worker ended; `returncode` as `subprocess` gives it."""
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        words = f"killed by {name}"
        meaning = _SIGNALS.get(-returncode)
    else:
        words = f"exit code {returncode}"
        meaning = _EXIT_CODES.get(returncode)
    if meaning:
        words += f" ({meaning})"
    return f"{words}; its last words: {last_stderr_line}" if last_stderr_line else words


def is_permanent(returncode: int) -> bool:
    """Return whether starting the same worker again must end the same way."""
    return returncode in {EXIT_BAD_MODEL, EXIT_NO_ENGINE}


def blames_requests(returncode: int, *, hung: bool) -> bool:
    """Return whether a worker may have died of a request; SIGKILL and SIGTERM came from outside."""
    return hung or returncode not in {-signal.SIGKILL, -signal.SIGTERM, EXIT_OK}


# ── try again when? ──


class Backoff:
    """Waits between the workers of one model: doubling, and an end to starts that never succeed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waits = Doubling(limits.first_backoff_s, limits.most_backoff_s)
        self._bad_starts = 0
        self._at_once = True  # the next crash is the first for long

    def start_failed(self) -> float | None:
        """Return the wait in s after a worker that died before it was ready; None: give up."""
        self._bad_starts += 1
        return None if self._bad_starts >= self._limits.bad_starts else self._waits.next_s()

    def crashed(self, served_s: float) -> float:
        """Return the wait in s after a worker that died once it had served for `served_s`."""
        self._bad_starts = 0
        if served_s >= self._limits.stable_s:
            self._waits.reset()
            self._at_once = True
        if self._at_once:
            self._at_once = False
            return min(self._limits.again_s, self._limits.first_backoff_s)
        return self._waits.next_s()

    def reset(self) -> None:
        """Forget: the configuration changed."""
        self._waits.reset()
        self._bad_starts = 0
        self._at_once = True


# ── leave why? ──

Leave = Literal["stopping", "removed", "replaced", "drained", "unloaded", "evicted", "idle"]

# A worker that leaves for these reasons serves who waits as well: nobody comes after it soon.
LAST_CALL = ("stopping", "removed", "drained", "evicted", "idle")


def why_leave(
    *,
    over: Literal["stopping", "removed"] | None,
    replaced: bool,
    drained: bool,
    unloaded: bool,
    evicted: bool,
    idle_s: float,
    idle_unload_s: float | None,
) -> Leave | None:
    """Return why a ready worker has to go, or None.

    `idle_s` is 0 while any request is open, and the caller drops the wish to evict then.
    """
    reasons: tuple[tuple[Leave, bool], ...] = (
        ("replaced", replaced),
        ("drained", drained),
        ("unloaded", unloaded),
        ("evicted", evicted),
        ("idle", idle_unload_s is not None and idle_s >= idle_unload_s),
    )
    return over or next((reason for reason, holds in reasons if holds), None)
