"""Decisions about a worker's life, apart from any process: hung, dead of what, when to try again.

Pure: the caller brings the clock (monotonic, s) and does what is decided.
"""

from __future__ import annotations

import signal
from typing import Literal

from msgspec import Struct

from edged.protocol import (
    EXIT_BAD_MODEL,
    EXIT_FAULT,
    EXIT_NO_ENGINE,
    EXIT_OK,
    Launch,
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
    progress_s: float = 60.0  # busy, but no engine step
    first_backoff_s: float = 1.0
    most_backoff_s: float = 60.0
    stable_s: float = 60.0  # served this long: the next crash starts from the first back-off
    memory_retry_s: float = 15.0  # a startup model without room asks again
    bad_starts: int = 5  # in a row, then the model is failed


# ── hung? ──

TICK_S = 1.0


class Liveness:
    """Tells a hung worker from a busy one, fed with what was heard and a tick every TICK_S.

    It adds up ticks of at most two TICK_S each instead of subtracting times: when the daemon
    itself was stopped for a minute, no worker may be blamed for it.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._ticked: float | None = None
        self._loaded = False
        self._silent_s = 0.0
        self._stuck_s = 0.0
        self._progress: int | None = None

    def loading(self) -> None:
        """Note that the load went on."""
        self._silent_s = 0.0

    def ready(self) -> None:
        """Note that the load is over."""
        self._loaded = True
        self._silent_s = 0.0

    def heard(self, stats: Stats | None = None) -> None:
        """Note a frame. While loading only `loading` counts: the loop alone proves nothing."""
        if self._loaded:
            self._silent_s = 0.0
        if stats is not None and stats.progress != self._progress:
            self._progress = stats.progress
            self._stuck_s = 0.0

    def tick(self, now: float, *, busy: bool) -> str | None:
        """Return why the worker counts as hung, in words for the operator, or None."""
        elapsed = 0.0 if self._ticked is None else min(now - self._ticked, 2 * TICK_S)
        self._ticked = now
        self._silent_s += elapsed
        self._stuck_s = self._stuck_s + elapsed if busy and self._loaded else 0.0
        limits = self._limits
        if not self._loaded:
            if self._silent_s >= limits.load_silence_s:
                return f"hung: loading made no progress for {limits.load_silence_s:.0f} s"
        elif self._silent_s >= limits.silence_s:
            return f"hung: not a sign of life for {limits.silence_s:.0f} s"
        elif self._stuck_s >= limits.progress_s:
            return f"hung: requests open, but no engine step for {limits.progress_s:.0f} s"
        return None


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


# ── try again when? ──


class Backoff:
    """Waits between the workers of one model: doubling, and an end to starts that never succeed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._next_s = limits.first_backoff_s
        self._bad_starts = 0

    def start_failed(self) -> float | None:
        """Return the wait in s after a worker that died before it was ready; None: give up."""
        self._bad_starts += 1
        return None if self._bad_starts >= self._limits.bad_starts else self._wait_s()

    def crashed(self, served_s: float) -> float:
        """Return the wait in s after a worker that died once it had served for `served_s`."""
        self._bad_starts = 0
        if served_s >= self._limits.stable_s:
            self._next_s = self._limits.first_backoff_s
        return self._wait_s()

    def reset(self) -> None:
        """Forget: the configuration changed."""
        self._next_s = self._limits.first_backoff_s
        self._bad_starts = 0

    def _wait_s(self) -> float:
        wait_s = self._next_s
        self._next_s = min(2 * wait_s, self._limits.most_backoff_s)
        return wait_s


# ── leave why? ──

Leave = Literal["stopping", "removed", "replaced", "drained", "unloaded", "evicted", "idle"]


def why_leave(
    *,
    over: Literal["stopping", "removed"] | None,
    running: Launch,
    wanted: Launch | None,
    drained: bool = False,
    unloaded: bool = False,
    evicted: bool,
    idle_s: float,
    idle_unload_s: float | None,
) -> Leave | None:
    """Return why a ready worker has to go, or None.

    `idle_s` is 0 while any request is open, and the caller drops the wish to evict then.
    """
    reasons: tuple[tuple[Leave, bool], ...] = (
        ("replaced", wanted != running),
        ("drained", drained),
        ("unloaded", unloaded),
        ("evicted", evicted),
        ("idle", idle_unload_s is not None and idle_s >= idle_unload_s),
    )
    return over or next((reason for reason, holds in reasons if holds), None)
