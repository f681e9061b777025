"""What a worker writes to stderr: into the log, line by line, and the last lines kept."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import IO, cast

from edged.log import get_logger

log = get_logger()

_KEPT_LINES = 50
_LINE_CHARS = 500
_DUMP = "Fatal Python error: "
_JUST_NOW_S = 5.0  # what a worker wrote long before it died is no clue to its death
_BURST_LINES = 200  # logged at once; then _LINES_A_SECOND, so that a mad worker cannot fill a disk
_LINES_A_SECOND = 10.0


class StderrTail(asyncio.Protocol):
    """Reads the pipe for as long as somebody holds its other end."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._kept: deque[str] = deque(maxlen=_KEPT_LINES)
        self._partial = b""
        self._transport: asyncio.ReadTransport | None = None
        self._ended = asyncio.Event()
        self._allowance = float(_BURST_LINES)
        self._refilled = self._written = time.monotonic()
        self._skipped = 0

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines, oldest first."""
        return tuple(self._kept)

    @property
    def last(self) -> str:
        """The last line that is not blank, if it was written just now: the last words.

        faulthandler's stacks, which a dying worker writes, do not count: what led to them does.
        """
        if time.monotonic() - self._written > _JUST_NOW_S:
            return ""
        lines = [line for line in self._kept if line.strip()]
        dumps = [n for n, line in enumerate(lines) if line.startswith(_DUMP)]
        said = lines[: dumps[-1]] if dumps else lines
        return said[-1] if said else next(iter(lines[dumps[-1] :] if dumps else []), "")

    async def follow(self, pipe: IO[bytes]) -> None:
        """Start to read; owns `pipe` from now on."""
        await asyncio.get_running_loop().connect_read_pipe(lambda: self, pipe)

    async def ended(self, limit_s: float) -> None:
        """Wait until all was read."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), limit_s)

    def close(self) -> None:
        """Stop reading."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast("asyncio.ReadTransport", transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:  # noqa: D102
        *lines, rest = (self._partial + data).split(b"\n")
        for line in lines:
            self._keep(line)
        self._partial = rest[-4 * _LINE_CHARS :]

    def connection_lost(self, _error: Exception | None) -> None:  # noqa: D102
        if self._partial:
            self._keep(self._partial)
        self._ended.set()

    def _keep(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").rstrip()[:_LINE_CHARS]
        self._kept.append(line)
        now = time.monotonic()
        earned = (now - self._refilled) * _LINES_A_SECOND
        self._allowance = min(self._allowance + earned, _BURST_LINES)
        self._refilled = self._written = now
        if self._allowance < 1:
            self._skipped += 1
            return
        self._allowance -= 1
        if self._skipped:
            log.warning("worker.stderr_skipped", model=self._model, lines=self._skipped)
            self._skipped = 0
        log.info("worker.stderr", model=self._model, line=line)
