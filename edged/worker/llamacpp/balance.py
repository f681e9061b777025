"""The effects of `threads.py`: what other programs take of the CPUs is read, changes are logged.

What others take is what is neither idle nor ours. /proc/stat counts idle time exactly, whatever
the rest of its columns guess, and reading it costs some 15 µs on two CPUs. It says nothing of who
waits: that the clock of the steps tells.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from edged.log import get_logger
from edged.worker.llamacpp.threads import Threads

log = get_logger()

LOOK_S = 0.25  # between two looks
_REST_S = 1.0  # without a step: what was read before says nothing of now
_IDLE, _IOWAIT = 4, 5  # columns of a cpu line of /proc/stat
_MOST_BYTES = 1 << 16


class BoxLoad:
    """How many of the CPUs that this process may use were busy for others."""

    def __init__(self, stat: Path = Path("/proc/stat"), cpus: set[int] | None = None) -> None:
        """`cpus`: those to watch; None: those of this process's affinity."""
        chosen = os.sched_getaffinity(0) if cpus is None else cpus
        self.n_cpus = len(chosen)
        self._names = {f"cpu{n}".encode() for n in chosen}
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        self._file: int | None = None
        with contextlib.suppress(OSError):  # no /proc/stat: the clock of the steps must do
            self._file = os.open(stat, os.O_RDONLY | os.O_CLOEXEC)
        self._last: tuple[float, float, float] | None = None  # now, idle, ours

    def begin(self, now_s: float) -> None:
        """Measure from here on, if the last look was long ago. Before each step."""
        if self._last is None or now_s - self._last[0] > _REST_S:
            self._last = self._read(now_s)

    def look(self, now_s: float) -> float | None:
        """Return the CPUs that others took since the last look or `begin`.

        None, and no look, where that was less than `LOOK_S` ago.
        """
        before = self._last
        if before is None or now_s - before[0] < LOOK_S:
            return None
        self._last = self._read(now_s)
        if self._last is None:
            return None
        seconds, idle_s, ours_s = (new - old for new, old in zip(self._last, before, strict=True))
        return min(max(0.0, self.n_cpus - (idle_s + ours_s) / seconds), float(self.n_cpus))

    def _read(self, now_s: float) -> tuple[float, float, float] | None:
        if self._file is None:
            return None
        ticks = 0
        for line in os.pread(self._file, _MOST_BYTES, 0).split(b"\n"):
            fields = line.split()
            if fields and fields[0] in self._names:
                ticks += int(fields[_IDLE]) + int(fields[_IOWAIT])
        return now_s, ticks * self._tick_s, time.process_time()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Balance:
    """Moves the thread counts with what the box does. One owner: the engine thread."""

    def __init__(self, decode: int, prefill: int) -> None:
        self._load = BoxLoad()
        self.threads = Threads(decode, prefill, self._load.n_cpus)

    def before(
        self, n_tokens: int, now_s: float, *, decoding: bool, urgent: bool = False
    ) -> tuple[int, int]:
        """Return the threads of decode and prefill for a step that begins now: `Threads.ahead`."""
        self._load.begin(now_s)
        return self.threads.ahead(n_tokens, decoding=decoding, urgent=urgent)

    def after(self, n_tokens: int, started_s: float, now_s: float, *, decoding: bool) -> None:
        """Take note of that step."""
        threads = self.threads
        threads.step(n_tokens, now_s - started_s, decoding=decoding)
        taken = self._load.look(now_s)
        if taken is not None:
            threads.look(taken)
        change = threads.news(now_s)
        if change is not None:
            log.info(
                "engine.threads",
                decode=change.now[0],
                prefill=change.now[1],
                was_decode=change.before[0],
                was_prefill=change.before[1],
                reason=change.reason or "the cores are free again",
            )

    def close(self) -> None:
        """Close what was opened."""
        self._load.close()
