"""The HTTP server: the addresses that it listens on, which may change while it runs.

uvicorn serves; here are its sockets, its limits on a request's head, and no signal handling (the
daemon owns the signals).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import socket
import ssl
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edged.config import Listen
from edged.daemon.systemd import Given

_BACKLOG = 512
_KEEP_ALIVE_S = 75
_HEAD_S = 30.0  # from a connection, or a next request's first byte, to the end of its head
_HEAD_BYTES = 64 << 10
_HANDSHAKE_S = 10.0
_UNREAD_S = 120.0  # a client that takes no bytes for this long is cut off
_V6ONLY = socket.IPV6_V6ONLY
_CUT_S = 5.0
_CLOSED_S = 1.0  # a closed socket is gone from the kernel
LAST_CALL_S = 0.5  # when the daemon stops: a request that is on its way may still come in


class ListenError(Exception):
    """An address cannot be listened on; the message says what to do."""


# ── sockets ──


def open_socket(listen: Listen) -> socket.socket:
    """Return a bound socket, not listening yet; raises ListenError."""
    try:
        return _open_unix(listen.path) if listen.kind == "unix" else _open_tcp(listen)
    except OSError as error:
        raise ListenError(_explain(listen, error)) from error


def _open_tcp(listen: Listen) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind((listen.host, listen.port))
        opened.listen(_BACKLOG)  # here, not later: only now a port in use is noticed for sure
    except OSError:
        opened.close()
        raise
    return opened


def _open_unix(path: str) -> socket.socket:
    _remove_stale(path)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o117)  # owner and group
        try:
            opened.bind(path)
        finally:
            os.umask(before)
        opened.listen(_BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody serves any more; anything else stays where it is."""
    try:
        mode = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"cannot listen on unix:{path}: a file that is no socket is in the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        else:
            raise OSError(errno.EADDRINUSE, "in use")


def _explain(listen: Listen, error: OSError) -> str:
    what = f"cannot listen on {listen}"
    if error.errno == errno.EADDRINUSE:
        find = (
            f"ss -lxp src {listen.path}"
            if listen.kind == "unix"
            else f"ss -ltnp 'sport = :{listen.port}'"
        )
        return f"{what}: another program does already; `sudo {find}` shows which"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{what}: this box has no such address; `ip addr` shows those that it has"
    if error.errno == errno.EACCES:
        tcp = listen.kind == "tcp"
        return f"{what}: {'ports below 1024 need root' if tcp else 'no rights in that folder'}"
    return f"{what}: {error.strerror or error}"


def address(opened: socket.socket, *, tls: bool = False) -> Listen:
    """Return where a socket listens in fact: port 0 has become a number."""
    name = opened.getsockname()
    if opened.family == socket.AF_UNIX:
        return Listen("unix", path=name if isinstance(name, str) else name.decode())
    return Listen("tcp", host=name[0], port=name[1], tls=tls)


# ── server ──


class HttpServer(uvicorn.Server):
    """One app on any number of sockets.

    `given` are sockets that systemd holds: they serve for ever, and an address of the
    configuration that they cover is not opened again. One that is called `https` speaks TLS.
    """

    def __init__(
        self, app: Any, given: Iterable[Given], *, finish_s: float, context: ssl.SSLContext
    ) -> None:
        config = uvicorn.Config(
            app,
            http=_HttpProtocol,
            ws="none",
            lifespan="on",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # what a client claims to be is not where it comes from
            timeout_keep_alive=_KEEP_ALIVE_S,
            # The supervisor ends what does not finish; cutting is for clients that do not read.
            timeout_graceful_shutdown=math.ceil(finish_s + LAST_CALL_S + _CUT_S),
        )
        config.load()
        super().__init__(config)
        self.lifespan = config.lifespan_class(config)
        self.servers = []
        self._given = {
            address(each.socket, tls=each.name == "https"): each.socket for each in given
        }
        self._context = context
        self._open: dict[Listen, asyncio.Server] = {}  # as configured, port 0 included
        self._inodes: dict[Listen, int] = {}  # of the socket files that are ours to remove

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the daemon."""
        yield

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where clients are served now."""
        return tuple(
            f"{address(opened)}{' (TLS)' if listen.tls else ''}"
            for listen, server in self._open.items()
            for opened in server.sockets
        )

    @property
    def listening(self) -> tuple[Listen, ...]:
        """The same as addresses; a socket for IPv6 and IPv4 counts as two."""
        found = []
        for listen, server in self._open.items():
            for opened in server.sockets:
                each = address(opened, tls=listen.tls)
                found.append(each)
                if each.host == "::" and not opened.getsockopt(socket.IPPROTO_IPV6, _V6ONLY):
                    found.append(Listen("tcp", "0.0.0.0", each.port, tls=each.tls))  # noqa: S104
        return tuple(found)

    async def listen_on(self, wanted: tuple[Listen, ...], *, tls: bool = False) -> None:
        """Serve exactly these addresses (and the given ones; those for TLS only with `tls`).

        Opens what is new before it closes what is gone; only where both cannot be open at once
        (0.0.0.0 and 127.0.0.1 on one port) there is a moment without either. Raises ListenError
        with everything as it was. Open connections of a closed address go on.
        """
        given = {each: opened for each, opened in self._given.items() if tls or not each.tls}
        asked = [each for each in wanted if not _covered(each, given)]
        new = [each for each in asked if each not in self._open]
        kept = {*asked, *given}
        gone = [each for each in self._open if each not in kept]
        in_the_way = [old for old in gone if any(_overlap(old, each) for each in new)]
        for old in in_the_way:
            self._close(old)
        try:
            opened = await _open_all(new, patiently=bool(in_the_way))
        except ListenError:
            await self._serve_on(await _open_all(in_the_way, patiently=True))
            raise
        unserved = {each: held for each, held in given.items() if each not in self._open}
        await self._serve_on(unserved | opened)
        for old in set(gone) - set(in_the_way):
            self._close(old)

    async def run_until_exit(self) -> None:
        """Serve until `should_exit`; then let open answers finish within the limit."""
        await self.lifespan.startup()
        self.started = True
        await self.main_loop()
        await self.shutdown()
        for listen in list(self._inodes):
            self._unlink(listen)

    async def _serve_on(self, sockets: dict[Listen, socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        for listen, opened in sockets.items():
            opened.setblocking(False)
            is_unix = opened.family == socket.AF_UNIX
            more = {"ssl": self._context, "ssl_handshake_timeout": _HANDSHAKE_S}
            create: Any = loop.create_unix_server if is_unix else loop.create_server
            self._open[listen] = await create(
                self._protocol, sock=opened, backlog=_BACKLOG, **(more if listen.tls else {})
            )
            self.servers.append(self._open[listen])
            if is_unix and listen not in self._given:
                self._inodes[listen] = _inode(listen.path)

    def _close(self, listen: Listen) -> None:
        server = self._open.pop(listen)
        self.servers.remove(server)
        server.close()
        self._unlink(listen)

    def _protocol(self) -> asyncio.Protocol:
        return _HttpProtocol(self.config, self.server_state, app_state={})

    def _unlink(self, listen: Listen) -> None:
        """Remove the file of our socket, unless it is another daemon's by now."""
        inode = self._inodes.pop(listen, None)
        with contextlib.suppress(FileNotFoundError):
            if inode is not None and inode == _inode(listen.path):
                Path(listen.path).unlink()


async def _open_all(wanted: list[Listen], *, patiently: bool) -> dict[Listen, socket.socket]:
    """Open all or none; raises ListenError. `patiently`: the loop is closing what was there."""
    opened: dict[Listen, socket.socket] = {}
    give_up = time.monotonic() + (_CLOSED_S if patiently else 0)
    try:
        for listen in wanted:
            while listen not in opened:
                try:
                    opened[listen] = open_socket(listen)
                except ListenError:
                    if time.monotonic() >= give_up:
                        raise
                    await asyncio.sleep(0.01)
    except ListenError:
        for each in opened.values():
            each.close()
        raise
    return opened


def _overlap(one: Listen, other: Listen) -> bool:
    """Return whether the kernel may refuse both at once: the same port of the same family."""
    same_family = (":" in one.host) == (":" in other.host)
    return one.kind == other.kind == "tcp" and same_family and one.port == other.port


def _covered(wanted: Listen, given: Mapping[Listen, socket.socket]) -> bool:
    """Return whether a given socket serves this address: it has it, or all of its family."""
    if wanted in given:
        return True
    is_v6 = ":" in wanted.host
    return any(
        (each.kind, each.port, each.tls) == (wanted.kind, wanted.port, wanted.tls)
        and (
            each.host == ("::" if is_v6 else "0.0.0.0")  # noqa: S104
            or (each.host == "::" and not opened.getsockopt(socket.IPPROTO_IPV6, _V6ONLY))
        )
        for each, opened in given.items()
        if each.kind == "tcp"
    )


def _inode(path: str) -> int:
    return Path(path).lstat().st_ino


class _HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits on the head of a request, in bytes and in time.

    At the end of the daemon it answers what is already on its way, instead of closing a
    connection on which a request may arrive this very moment.
    """

    _is_last_call = False
    _in_head = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Count the time for which a client takes nothing of what waits for it."""
        self._stop_unread_timer()
        self._unread_timer = self.loop.call_later(_UNREAD_S, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        self._stop_unread_timer()
        super().resume_writing()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._start_head_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        super().on_headers_complete()
        if self._is_last_call and self.cycle is not None:
            self.cycle.keep_alive = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self._refuse("431 Request Header Fields Too Large", "headers_too_large")

    def shutdown(self) -> None:
        self._is_last_call = True
        if self._is_idle():
            self.loop.call_later(LAST_CALL_S, self._close_if_idle)
        else:
            super().shutdown()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse("400 Bad Request", "invalid_http", msg)

    def _refuse(self, status: str, code: str, message: str = "") -> None:
        self._in_head = False
        message = message or f"the head of a request may have {_HEAD_BYTES} bytes"
        body = (
            f'{{"error":{{"message":"{message}","type":"invalid_request_error",'
            f'"param":null,"code":"{code}"}}}}'
        )
        self.transport.write(
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
        )
        self.transport.close()

    def _start_head_timer(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(_HEAD_S, self.transport.close)

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
