"""An event for one waiter, which forgets itself when it is awaited."""

from __future__ import annotations

import asyncio


class Wake:
    """What `asyncio.Event` with `clear` does, for one waiting task and one loop.

    Streams wait twice for each token: the library's event takes a lock and a queue for each wait,
    which is a tenth of all that a stream costs the daemon.
    """

    __slots__ = ("_due", "_waiter")

    def __init__(self) -> None:
        self._due = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Let the waiting task go on, or the next one that waits."""
        self._due = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until `set` was called since the last wait ended."""
        if not self._due:
            assert self._waiter is None, "one waiter only"
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._due = False
