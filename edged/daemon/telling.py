"""What systemd is told: ready, reloading, stopping, alive, and one line on how the box is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from edged.daemon.systemd import Notifier
from edged.status import ModelStatus

_STATUS_S = 2.0  # the STATUS line follows within


def line(models: Sequence[ModelStatus], lost: Sequence[str], problem: str | None) -> str:
    """Return how the box is; `lost`: hardware, `problem`: why models.toml is not in force."""
    counts: dict[str, int] = {}
    for model in models:
        counts[model.state] = counts.get(model.state, 0) + 1
    parts = [f"{len(models)} model{'' if len(models) == 1 else 's'}"]
    parts += [f"{number} {state}" for state, number in sorted(counts.items())]
    if back := [model.name for model in models if model.rolled_back]:
        parts.append(f"newest settings NOT in force for {', '.join(back)}")
    parts += [f"DEGRADED: {what}" for what in lost]
    if problem:
        parts.append(f"configuration NOT applied: {problem}")
    return ", ".join(parts)


class Telling:
    """`line`: how the box is, in one line."""

    def __init__(self, line: Callable[[], str]) -> None:
        self._line = line
        self._notifier = Notifier()
        self._announced = False  # READY was sent

    async def announce(self, settled: asyncio.Task[None]) -> None:
        """Say READY once `settled` is done; until then the start may take its time."""
        while not settled.done():
            self._notifier.extend_timeout(60, self._line())
            await asyncio.wait([settled], timeout=10)
        self._announced = True
        self._notifier.ready(self._line())

    async def keep_informed(self) -> None:
        """Feed the watchdog from this very loop, and keep STATUS true."""
        if not self._notifier.enabled:
            return
        watchdog_s = self._notifier.watchdog_s
        shown = ""
        while True:
            if watchdog_s is not None:
                self._notifier.alive()
            if (line := self._line()) != shown and self._announced:
                self._notifier.status(line)
                shown = line
            await asyncio.sleep(min(_STATUS_S, watchdog_s or _STATUS_S))

    @contextmanager
    def reload(self) -> Iterator[None]:
        """Say that a reload begins and, whatever came of it, that it is over."""
        self._notifier.reloading()
        yield
        if self._announced:
            self._notifier.ready(self._line())

    def stopping(self, seconds: float) -> None:
        """Say that the stop has begun and may take so long."""
        self._notifier.stopping()
        self._notifier.extend_timeout(seconds, "stopping: open requests may finish")
