"""A recorder between clients and the daemon: forwards bytes, keeps them, reads them later.

It stands at the level of TCP, so that what it must not change (chunks, pauses, a client that hangs
up) cannot change. `exchanges()` reads the kept bytes as HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

import h11

_START_LIMIT_S = 30.0
_PIECE_BYTES = 1 << 16


@dataclass
class Exchange:
    """One request and what came back. `whole`: the answer came to its end."""

    method: str
    path: str
    request: bytes = b""
    status: int = 0
    content_type: str = ""
    body: bytes = b""
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path} → {self.status} {self.content_type}"


@dataclass
class _Connection:
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)


class Recorder:
    """Forwards every connection to the daemon at `url`; its own address is `self.url`."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._upstream = (address.hostname, address.port)
        self._connections: list[_Connection] = []
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._listening.wait(_START_LIMIT_S):
            raise TimeoutError("the recorder does not listen")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def exchanges(self) -> list[Exchange]:
        """Return all that was said until now."""
        return [each for connection in self._connections for each in _read(connection)]

    # ── in the thread ──

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._listening.set()
        await self._stop.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        kept = _Connection()
        self._connections.append(kept)
        from_daemon, to_daemon = await asyncio.open_connection(*self._upstream)
        up = asyncio.create_task(_pump(from_client, to_daemon, kept.sent))
        down = asyncio.create_task(_pump(from_daemon, to_client, kept.received))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            if not down.done():  # the client hung up: so does the daemon's client
                to_daemon.close()
                await asyncio.wait((down,), timeout=1)
        finally:
            for task in (up, down):
                task.cancel()
            to_client.close()
            to_daemon.close()


async def _pump(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, kept: bytearray
) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await source.read(_PIECE_BYTES):
            kept += piece
            target.write(piece)
            await target.drain()


def _read(connection: _Connection) -> Iterator[Exchange]:
    """Yield the exchanges of one connection; the two sides are read in step, as h11 wants it."""
    client_side = h11.Connection(h11.SERVER)  # reads what the client sent
    daemon_side = h11.Connection(h11.CLIENT)
    client_side.receive_data(bytes(connection.sent))
    daemon_side.receive_data(bytes(connection.received))
    while isinstance(request := client_side.next_event(), h11.Request):
        exchange = Exchange(request.method.decode(), request.target.decode())
        daemon_side.send(request)
        while isinstance(event := client_side.next_event(), h11.Data):
            exchange.request += event.data
            daemon_side.send(event)
        if not isinstance(event, h11.EndOfMessage):
            return
        daemon_side.send(event)
        response = _response(daemon_side, exchange)
        yield exchange
        if response is None or not exchange.whole or daemon_side.our_state is not h11.DONE:
            return
        if daemon_side.their_state is not h11.DONE:
            return
        client_side.send(response)
        # The body was read above; here only the state has to follow.
        if exchange.body and exchange.method != "HEAD":
            client_side.send(h11.Data(exchange.body))
        client_side.send(h11.EndOfMessage())
        if client_side.our_state is not h11.DONE or client_side.their_state is not h11.DONE:
            return
        client_side.start_next_cycle()
        daemon_side.start_next_cycle()


def _response(side: h11.Connection, exchange: Exchange) -> h11.Response | None:
    """Read one response into `exchange`; None when it never began."""
    try:
        event = side.next_event()
        while isinstance(event, h11.InformationalResponse):
            event = side.next_event()
    except h11.RemoteProtocolError:  # closed before the answer began
        return None
    if not isinstance(event, h11.Response):
        return None
    response = event
    exchange.status = response.status_code
    headers = {name.lower(): value for name, value in response.headers}
    exchange.content_type = headers.get(b"content-type", b"").decode()
    with contextlib.suppress(h11.RemoteProtocolError):  # closed before the answer ended
        while isinstance(event := side.next_event(), h11.Data):
            exchange.body += event.data
        exchange.whole = isinstance(event, h11.EndOfMessage)
    return response
