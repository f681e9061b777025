"""What systemd sees of a whole daemon: a test plays systemd's part at both sockets."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.daemon.appliance import Appliance, appliance, needs_engine
from tests.daemon.support import PATIENCE_S, until

pytestmark = needs_engine


class Inbox:
    """systemd's end of NOTIFY_SOCKET; keeps every message."""

    def __init__(self, path: Path) -> None:
        self.messages: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    async def until(self, *parts: str) -> int:
        """Wait for a message with all these parts and return its place."""

        def found() -> list[int]:
            while True:
                try:
                    self.messages.append(self._socket.recv(4096).decode())
                except BlockingIOError:
                    break
            return [
                place
                for place, message in enumerate(self.messages)
                if all(part in message for part in parts)
            ]

        await until(found, lambda: f"{parts} in {self.messages}")
        return found()[0]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    inbox = Inbox(tmp_path / "notify")
    yield inbox
    inbox.close()


def environment(pid: int) -> set[bytes]:
    """Return the names in the environment of a process."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {pair.partition(b"=")[0] for pair in pairs}


async def test_states_are_announced_in_their_order(tmp_path: Path, inbox: Inbox) -> None:
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
    async with appliance(tmp_path, "a--slow-1 load = 'startup'", env=env) as box:
        loading = await inbox.until("EXTEND_TIMEOUT_USEC=", "1 starting")
        ready = await inbox.until("READY=1", "STATUS=1 model, 1 ready")
        assert loading < ready
        await inbox.until("WATCHDOG=1")
        box.save("[models.a]\n")
        begun = await inbox.until("RELOADING=1", "MONOTONIC_USEC=")
        done = await inbox.until("READY=1", "NOT applied")
        assert ready < begun < done
        box.write("b")
        await inbox.until("READY=1", "1 model, 1 stopped")
        stream = asyncio.create_task(box.ask("b", "count 10 0.05"))
        await box.until_model("b", open=1)
        assert not {b"NOTIFY_SOCKET", b"WATCHDOG_USEC"} & environment(box.workers()[0])
        assert await box.stop() == 0
        assert len((await stream).split()) == 10
        await inbox.until("STOPPING=1")


async def test_daemon_is_ready_when_a_startup_model_is_hopeless(
    tmp_path: Path, inbox: Inbox
) -> None:
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    async with appliance(tmp_path, "a--bad load = 'startup'", env=env):
        await inbox.until("READY=1", "1 failed")


async def test_blocked_loop_feeds_no_watchdog(tmp_path: Path, inbox: Inbox) -> None:
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    async with appliance(tmp_path, env=env) as box:
        await inbox.until("WATCHDOG=1")
        box.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.5)
        await inbox.until("WATCHDOG=1")
        heard = len(inbox.messages)
        await asyncio.sleep(1)
        await inbox.until("WATCHDOG=1")
        assert len(inbox.messages) == heard
        box.process.send_signal(signal.SIGCONT)
        assert await box.stop() == 0


async def test_restarts_on_systemds_socket_lose_no_request(tmp_path: Path) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        box = Appliance(tmp_path)
        box.port = listening.getsockname()[1]
        await box.client.aclose()
        box.client = box.new_client(headers={"connection": "close"})
        box.write("a")  # its `listen` names the same address: it is not opened twice
        stop = asyncio.Event()
        answered = 0

        async def use() -> None:
            nonlocal answered
            while not stop.is_set():
                response = await box.client.get("/v1/models")
                assert response.status_code == httpx.codes.OK
                answered += 1

        load = asyncio.create_task(use())
        try:
            for _ in range(3):
                await box.start(listening=listening)
                before = answered
                await until(lambda before=before: answered > before + 5 or load.done())
                assert (await box.status())["listen"] == [f"127.0.0.1:{box.port}"]
                assert await box.stop() == 0
            await box.start(listening=listening)
            stop.set()
            await asyncio.wait_for(load, PATIENCE_S)
        finally:
            assert await box.stop() == 0
            await box.client.aclose()
