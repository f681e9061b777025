"""A worker that costs next to nothing: it speaks the protocol and generates at a steady pace.

``python null_engine.py … FD``, in the place of ``python -m edged.worker FD``. Like the real engine
it sends one `Step` a round, with one `Delta` for each generation that runs.
"""

import asyncio
import os
import socket
import sys

from edged.framing import Frames
from edged.protocol import (
    Abort,
    Delta,
    Finish,
    Generate,
    Load,
    Ready,
    Started,
    Stats,
    Step,
    ToWorker,
    Usage,
)

_READ_BYTES = 1 << 16
_BUFFERED_BYTES = 1 << 16
_STATS_S = 1.0
_ROUND_S = 0.0005  # more than the daemon can carry away, less than makes it join pieces


class NullEngine:
    """Generations by id, with the tokens that each still has to say."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._frames = Frames(ToWorker)
        self._left: dict[int, int] = {}
        self._asked: dict[int, int] = {}
        self._work = asyncio.Event()
        self._progress = 0

    def take(self, data: bytes) -> None:
        """Follow what the daemon says."""
        for message in self._frames.feed(data):
            match message:
                case Load():
                    self._send(Ready("null", 1 << 20, 1, "null", True, 1, 0.0))
                case Generate(id=number, max_tokens=n_tokens):
                    self._left[number] = self._asked[number] = n_tokens or 1
                    self._send(Step([Started(number, 1)]))
                    self._work.set()
                case Abort(id=number):
                    self._left.pop(number, None)

    async def generate(self) -> None:
        """Go round for ever."""
        while True:
            if not self._left:
                self._work.clear()
                await self._work.wait()
            self._progress += 1
            self._send(Step([Delta(number, content=" token") for number in self._left]))
            for number in list(self._left):
                self._left[number] -= 1
                if not self._left[number]:
                    del self._left[number]
                    usage = Usage(prompt_tokens=1, completion_tokens=self._asked[number])
                    self._send(Step([Finish(number, "length", usage)]))
            await self._writer.drain()
            await asyncio.sleep(_ROUND_S if self._left else 0)

    async def report(self) -> None:
        """Send statistics, which are the sign of life."""
        while True:
            self._send(Stats(self._progress, len(self._left), 0, 0, 1, 0, 0, 0, 0.0))
            await asyncio.sleep(_STATS_S)

    def _send(self, message: Ready | Step | Stats) -> None:
        self._writer.write(self._frames.encode(message))


async def live(sock: socket.socket) -> None:
    """Serve until the daemon hangs up."""
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    writer.transport.set_write_buffer_limits(high=_BUFFERED_BYTES)
    engine = NullEngine(writer)
    tasks = [asyncio.create_task(engine.generate()), asyncio.create_task(engine.report())]
    while data := await reader.read(_READ_BYTES):
        engine.take(data)
    del tasks
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(live(socket.socket(fileno=int(sys.argv[-1]))))
