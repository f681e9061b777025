"""The daemon's end of a worker's socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, cast

from edged.framing import FrameError, Frames
from edged.protocol import ToDaemon, ToWorker

_MAX_FRAME_UP_BYTES = 64 << 20  # 2,000 vectors of 4,096 are 32 MiB; more is a worker gone mad
_WRITE_HIGH_BYTES = 1 << 20  # unsent requests above this make the next one wait
_REAP_S = 2.0  # a worker exits by itself at the end of its socket


class Connection(asyncio.Protocol):
    """Frames in, frames out, never blocking."""

    def __init__(self, receive: Callable[[Any], None], on_broken: Callable[[], None]) -> None:
        self.broken = ""  # what was wrong with the worker's frames
        self._receive = receive
        self._on_broken = on_broken
        self._frames = Frames(ToDaemon, max_bytes=_MAX_FRAME_UP_BYTES)
        self._encoder = Frames(ToWorker)
        self._transport: asyncio.Transport | None = None
        self._lost = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()

    def send(self, message: ToWorker) -> None:
        """Hand a frame to the kernel, or to the buffer; a lost connection swallows it."""
        if self._transport is not None and not self._lost.is_set():
            self._transport.write(self._encoder.encode(message))

    async def writable(self) -> None:
        """Wait until the worker reads again; the end of the connection ends the wait too."""
        await self._may_write.wait()

    async def ended(self, limit_s: float) -> None:
        """Wait until everything that the worker sent has been received."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._lost.wait(), limit_s)

    def close(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self.broken:
            return
        try:
            for message in self._frames.feed(data):
                self._receive(message)
        except FrameError as error:
            self._break(f"it spoke nonsense: {error}")

    def eof_received(self) -> bool:  # noqa: D102
        return False  # close our side as well

    def connection_lost(self, _error: Exception | None) -> None:  # noqa: D102
        self._lost.set()
        self._may_write.set()
        # One that stays is stuck.
        asyncio.get_running_loop().call_later(_REAP_S, self._break, "it closed its socket")

    def _break(self, why: str) -> None:
        self.broken = self.broken or why
        self._on_broken()

    def pause_writing(self) -> None:  # noqa: D102
        self._may_write.clear()

    def resume_writing(self) -> None:  # noqa: D102
        self._may_write.set()
