"""Clients that send or take nothing, on real sockets: each costs its own connection only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path

from tests.daemon.appliance import PATIENCE_S, Appliance, appliance, closing, needs_engine


async def connected(box: Appliance) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", box.port)


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the daemon closes the connection."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while data := await asyncio.wait_for(reader.read(1 << 16), PATIENCE_S):
            got += data
    return got


async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /ready HTTP/1.1\r\nhost: a\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    assert head.startswith(b"HTTP/1.1 200 ")
    length = next(
        int(line.partition(b":")[2])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    )
    await asyncio.wait_for(reader.readexactly(length), PATIENCE_S)


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, piece: bytes) -> int:
    """Send the piece again and again; return how often until the daemon closed the connection."""
    closed = asyncio.create_task(rest_of(reader))
    for count in range(10_000):
        done, _ = await asyncio.wait({closed}, timeout=0.02)
        if done:
            return count
        with contextlib.suppress(ConnectionError):
            writer.write(piece)
            await writer.drain()
    raise AssertionError("the daemon listens for ever")


async def test_head_that_never_ends_is_cut_off_while_others_are_served(tmp_path: Path) -> None:
    async with appliance(tmp_path, env={"EDGED_TEST_HEAD_S": "1"}) as box:
        silent, silent_writer = await connected(box)
        quiet, quiet_writer = await connected(box)
        await answered(quiet, quiet_writer)
        reader, writer = await connected(box)
        writer.write(b"GET /health HTTP/1.1\r\nhost: a\r\n")
        # each line is progress, and none ends the head: progress alone must not help
        dripped = asyncio.create_task(dripping(reader, writer, b"x-more: y\r\n"))
        assert (await box.client.get("/health")).status_code == 200
        assert await dripped > 0
        assert await rest_of(silent) == b"", "who says nothing at all is cut off too"
        # who had an answer may be quiet for longer than a head may take
        await answered(quiet, quiet_writer)
        for each in (silent_writer, quiet_writer, writer):
            each.close()


async def test_head_that_is_too_large_is_refused_before_it_ends(tmp_path: Path) -> None:
    async with appliance(tmp_path) as box:
        reader, writer = await connected(box)
        writer.write(b"GET /health HTTP/1.1\r\nx-big: " + b"y" * (70 << 10))
        answer = await rest_of(reader)
        assert answer.startswith(b"HTTP/1.1 431 ")
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert body["error"]["code"] == "headers_too_large"
        writer.close()


@needs_engine
async def test_client_that_does_not_read_its_stream_is_cut_off(tmp_path: Path) -> None:
    # Small buffers, which a connection inherits from the socket that listens: soon nothing fits.
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        box = Appliance(tmp_path)
        box.port = listening.getsockname()[1]
        await box.client.aclose()
        box.client = box.new_client()
        box.write("a")
        await box.start(listening=listening, env={"EDGED_TEST_UNREAD_S": "1"})
        async with closing(box):
            await box.until_logged("daemon.serving")
            with socket.socket() as lazy:
                lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
                lazy.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(lazy, ("127.0.0.1", box.port))
                await loop.sock_sendall(lazy, _request("trickle 2000 0.005"))
                await box.until_model("a", open=1)
                await box.until_model("a", open=0)
                assert await box.ask("a", "echo still here") == "still here"
                assert (await box.model("a"))["restarts"] == 0
                assert "reads too slowly" not in box.log, "that is the bound of memory, not of time"
                got = b""
                with contextlib.suppress(ConnectionError):
                    while data := await asyncio.wait_for(loop.sock_recv(lazy, 1 << 16), PATIENCE_S):
                        got += data
                assert b"data: " in got
                assert b"[DONE]" not in got


def _request(prompt: str) -> bytes:
    body = {"model": "a", "messages": [{"role": "user", "content": prompt}], "stream": True}
    content = json.dumps(body).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(content), content)
    )
