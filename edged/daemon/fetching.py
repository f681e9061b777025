"""Has the files that the plan is missing fetched: one model after another, by a child process.

Written by its own coroutine in the daemon's loop; others only leave a plan (`follow`) or ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from edged.config import Source
from edged.doubling import Doubling
from edged.log import get_logger
from edged.plan import Plan
from edged.pull.progress import Ended, Line, Progress, Went
from edged.status import FetchStatus

log = get_logger()

_FIRST_AGAIN_S = 10.0
_LONGEST_AGAIN_S = 600.0
_HOPELESS_AGAIN_S = 3600.0  # what will not mend itself: a disk may have room by then
_STOP_S = 5.0


class _Wish(Struct):
    """One model and what it is missing."""

    sources: tuple[Source, ...]
    waits: Doubling = msgspec.field(
        default_factory=lambda: Doubling(_FIRST_AGAIN_S, _LONGEST_AGAIN_S)
    )
    progress: Progress | None = None
    error: str | None = None
    hopeless: bool = False
    again_at: float = 0.0  # on the monotonic clock
    here: bool = False  # fetched; the next plan will know it


class Fetching:
    """The fetches of one daemon. `arrived` is called when a model has got its files."""

    def __init__(self, config_path: Path, arrived: Callable[[], None]) -> None:
        self._config_path = config_path
        self._arrived = arrived
        self._wishes: dict[str, _Wish] = {}
        self._current: str | None = None
        self._changed = asyncio.Event()

    def follow(self, plan: Plan, *, afresh: bool) -> None:
        """Want what `plan` is missing. `afresh`: somebody saved the file, so try all at once."""
        wishes = {}
        for name, model in plan.models.items():
            if not model.missing:
                continue
            old = self._wishes.get(name)
            same = old is not None and old.sources == model.missing
            wish = old if old is not None and same else _Wish(model.missing)
            wish.here = False
            if afresh:
                wish.again_at = 0.0
                wish.waits.reset()
            wishes[name] = wish
        # models that load at startup come first
        first = [name for name in wishes if plan.models[name].model.load == "startup"]
        self._wishes = {name: wishes[name] for name in (*first, *wishes)}
        self._changed.set()

    def of(self, name: str) -> FetchStatus | None:
        """Return how far a model's files are; None: none are missing."""
        wish = self._wishes.get(name)
        if wish is None:
            return None
        found = wish.progress or Progress(source=str(wish.sources[0]))
        waits = self._current not in (None, name)
        return FetchStatus(
            source=found.source,
            file=found.file,
            done_bytes=found.done_bytes,
            total_bytes=found.total_bytes,
            bytes_per_s=found.bytes_per_s,
            left_s=0.0 if wish.here else found.left_s,
            note=f"waits for {self._current}" if waits and not wish.here else found.note,
            error=wish.error,
            is_hopeless=wish.hopeless,
            retry_in_s=max(0.0, wish.again_at - time.monotonic()) if wish.error else None,
        )

    async def run(self) -> None:
        """Fetch what is wanted until cancelled."""
        while True:
            self._changed.clear()
            name = self._next()
            if name is not None:
                await self._fetch(name, self._wishes[name])
                continue
            waiting = [wish.again_at for wish in self._wishes.values() if not wish.here]
            limit = max(0.05, min(waiting) - time.monotonic()) if waiting else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), limit)

    def _next(self) -> str | None:
        now = time.monotonic()
        due = (n for n, wish in self._wishes.items() if not wish.here and wish.again_at <= now)
        return next(due, None)

    async def _fetch(self, name: str, wish: _Wish) -> None:
        """Run the child for one model; it is stopped when nobody wants the model any more."""
        self._current = name
        wish.error, wish.hopeless = None, False
        log.info("fetch.begin", model=name, sources=[str(source) for source in wish.sources])
        try:
            ended = await self._run_child(name, wish)
        except (OSError, ValueError) as error:  # no process to be had, or it spoke nonsense
            ended = Ended(f"the fetching process cannot be used: {error}", passing=True)
        finally:
            self._current = None
        if ended is None:
            log.info("fetch.stopped", model=name)
            wish.progress = None
        elif ended.error is None:
            wish.here = True
            log.info("fetch.done", model=name)
            self._arrived()
            # Should the plan find the files missing all the same, it does not go round in circles.
            wish.again_at = time.monotonic() + wish.waits.next_s()
        else:
            wish.error, wish.hopeless = ended.error, not ended.passing
            wait_s = wish.waits.next_s() if ended.passing else _HOPELESS_AGAIN_S
            wish.again_at = time.monotonic() + wait_s
            wish.progress = None
            log.error("fetch.failed", model=name, reason=ended.error, retry_in_s=wait_s)

    async def _run_child(self, name: str, wish: _Wish) -> Ended | None:
        """Return how it ended; None: the wish was taken back."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edged.pull", "--config", str(self._config_path), name),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        reading = asyncio.create_task(self._read(child, wish))
        try:
            while not reading.done():
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait({reading, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                self._changed.clear()
                if self._wishes.get(name) is not wish:
                    return None
            return reading.result()
        finally:
            reading.cancel()
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.wait(), _STOP_S)

    async def _read(self, child: asyncio.subprocess.Process, wish: _Wish) -> Ended:
        assert child.stdout is not None
        async for raw in child.stdout:
            line: Line = msgspec.json.decode(raw, type=Line)
            if isinstance(line, Went):
                wish.progress = line.progress
            else:
                return line
        code = await child.wait()
        return Ended(f"the fetching process ended with {code}; see the log", passing=True)
