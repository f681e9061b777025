"""The worker process over a real socketpair, as the daemon sees it."""

from __future__ import annotations

import array
import asyncio
import fcntl
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from edged import protocol
from edged.framing import Frames
from edged.protocol import (
    Abort,
    Delta,
    Event,
    Failed,
    Finish,
    Load,
    LoadFailed,
    Loading,
    Ready,
    Regex,
    Sampling,
    Stats,
    Step,
    Text,
)
from tests.llamacpp.support import launch, needs_llama_cpp, request, wait_for
from tests.models import UnavailableError, broken
from tests.models.broken import Kind

pytestmark = needs_llama_cpp

LIMIT_S = 60  # for anything: the machine may be busy
Message = TypeVar("Message")
NO_END = Sampling(temperature=0.0, ignore_eos=True)


WORKER = ("-m", "edged.worker")

# A worker whose native code never comes back once the first request is decoded.
STUCK = """
import threading
from edged.worker import __main__
from edged.worker.llamacpp import runner

whole = runner.Runner.decode
warm = []

def decode(self, chunks):
    if warm:
        threading.Event().wait()
    warm.append(True)
    return whole(self, chunks)

runner.Runner.decode = decode
__main__.main()
"""


class Peer:
    """The daemon's end of one worker."""

    def __init__(self, send_buffer: int | None = None, program: Sequence[str] = WORKER) -> None:
        ours, theirs = socket.socketpair()
        if send_buffer is not None:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, *program, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        ours.setblocking(False)
        self._sock = ours
        self._frames = Frames(protocol.ToDaemon)
        self.received: list[Any] = []
        self._unread = 0
        self.events: list[Event] = []

    async def send(self, message: Any) -> None:
        data = self._frames.encode(message)
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def until(
        self, kind: type[Message], check: Callable[[Any], bool] | None = None
    ) -> Message:
        """Read until a message (or an event of a step) of this kind satisfies `check`."""
        loop = asyncio.get_running_loop()
        seen_messages, seen_events = len(self.received), len(self.events)
        async with asyncio.timeout(LIMIT_S):
            while True:
                new = self.received[seen_messages:] + self.events[seen_events:]
                for message in new:
                    if isinstance(message, kind) and (check is None or check(message)):
                        return message
                seen_messages, seen_events = len(self.received), len(self.events)
                data = await loop.sock_recv(self._sock, 1 << 16)
                assert data, f"the worker is gone: {self.stderr()}"
                for message in self._frames.feed(data):
                    self.received.append(message)
                    if isinstance(message, Step):
                        self.events += message.events

    def is_full(self) -> bool:
        """Tell whether the worker cannot write any more."""
        waiting = array.array("i", [0])
        fcntl.ioctl(self._sock, termios.FIONREAD, waiting)
        full, self._unread = waiting[0] > 0 and waiting[0] == self._unread, waiting[0]
        return full

    async def load(self, **more: Any) -> Ready:
        await self.send(Load(launch(**more)))
        return await self.until(Ready)

    async def gone(self) -> int:
        async with asyncio.timeout(LIMIT_S):
            return await asyncio.to_thread(self.process.wait)

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def hang_up(self) -> None:
        self._sock.close()

    async def close(self) -> None:
        self.hang_up()
        if self.process.poll() is None:
            self.process.kill()
        await self.gone()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    yield peer
    await peer.close()


async def test_load_generate_and_stats(peer: Peer) -> None:
    ready = await peer.load()
    assert ready.context == 512
    assert ready.chat_template
    assert ready.architecture == "qwen2"
    assert any(isinstance(m, Loading) for m in peer.received)
    asked = request("What is edged?", max_tokens=12)
    await peer.send(asked)
    finish = await peer.until(Finish)
    assert finish.id == asked.id
    assert any(isinstance(e, Delta) for e in peer.events)
    await peer.until(Stats, lambda s: s.completion_tokens > 0 and s.running == 0)


async def test_stats_come_while_a_decode_runs(peer: Peer) -> None:
    await peer.load(context=4096)
    for i in range(8):
        await peer.send(request("Hello", sampling=NO_END, group=str(i)))
    await peer.until(Stats, lambda s: s.running > 0 and s.progress > 0)


async def test_abort_ends_one_request_and_no_other(peer: Peer) -> None:
    await peer.load(context=2048)
    leaving, staying = (request(q, sampling=NO_END, max_tokens=300) for q in ("Hello", "Bye"))
    await peer.send(leaving)
    await peer.send(staying)
    await peer.until(Delta, lambda e: e.id == leaving.id)
    await peer.send(Abort(leaving.id))
    await peer.send(Abort(leaving.id))
    await peer.send(Abort(987654))
    finish = await peer.until(Finish)
    assert finish.id == staying.id
    await peer.until(Stats, lambda s: s.running == s.waiting == 0)
    assert not any(isinstance(e, Finish | Failed) and e.id == leaving.id for e in peer.events)


async def test_second_request_with_the_same_id_changes_nothing(peer: Peer) -> None:
    await peer.load()
    asked = request("Hello", sampling=NO_END, max_tokens=50)
    await peer.send(asked)
    await peer.send(asked)
    await peer.until(Finish)
    await peer.send(request("Hello", max_tokens=1))
    await peer.until(Finish)
    assert sum(isinstance(e, Finish) for e in peer.events) == 2


async def test_refused_request_is_one_failed_event(peer: Peer) -> None:
    await peer.load()
    await peer.send(request(Text("word " * 3000)))
    failed = await peer.until(Failed)
    assert failed.code == "context_length_exceeded"


@pytest.mark.parametrize("kind", ["not-a-gguf", "truncated", "directory", "wrong-vocabulary"])
async def test_bad_file_ends_with_its_own_exit_code(peer: Peer, kind: Kind) -> None:
    try:
        path = broken(kind)
    except UnavailableError as error:
        pytest.skip(str(error))
    await peer.send(Load(launch(path)))
    failed = await peer.until(LoadFailed)
    assert str(path) in failed.message
    assert await peer.gone() == protocol.EXIT_BAD_MODEL


async def test_engine_that_is_not_there_has_its_exit_code(peer: Peer) -> None:
    await peer.send(Load(replace(launch(), engine="lmdeploy")))
    failed = await peer.until(LoadFailed)
    assert "lmdeploy" in failed.message
    assert await peer.gone() == protocol.EXIT_NO_ENGINE


async def test_closed_socket_ends_the_worker(peer: Peer) -> None:
    await peer.load()
    peer.hang_up()
    assert await peer.gone() == protocol.EXIT_OK


async def test_worker_leaves_when_socket_and_stderr_are_gone(peer: Peer) -> None:
    await peer.load(context=2048)
    await peer.send(request("Hello", sampling=NO_END))
    await peer.until(Delta)
    assert peer.process.stderr is not None
    peer.process.stderr.close()
    # Words that it cannot say: the frame is not one of the protocol, so it ends with a fault.
    await asyncio.get_running_loop().sock_sendall(peer._sock, b"\x05\x00\x00\x00hello")
    assert await peer.gone() == protocol.EXIT_FAULT


async def test_frame_beyond_the_limit_ends_the_worker_with_a_fault(peer: Peer) -> None:
    await peer.load()
    await asyncio.get_running_loop().sock_sendall(peer._sock, b"\xff\xff\xff\xff")
    assert await peer.gone() == protocol.EXIT_FAULT
    assert "at most" in peer.stderr()


async def test_launch_that_makes_no_sense_is_a_failed_load(peer: Peer) -> None:
    await peer.send(Load(replace(launch(), llamacpp=None)))
    assert "settings" in (await peer.until(LoadFailed)).message
    assert await peer.gone() == protocol.EXIT_BAD_MODEL


@pytest.mark.parametrize("how", [{"context": 1}, {"parallel": 256, "context": 16}])
async def test_launch_at_the_edges_loads_or_says_why(peer: Peer, how: dict[str, int]) -> None:
    await peer.send(Load(launch(**how)))
    message = await peer.until(object, lambda m: isinstance(m, Ready | LoadFailed))
    if isinstance(message, LoadFailed):
        assert "context" in message.message
        assert await peer.gone() == protocol.EXIT_BAD_MODEL


async def test_sigterm_while_loading_exits_cleanly(peer: Peer) -> None:
    await peer.send(Load(launch()))
    await peer.until(Loading)
    peer.process.terminate()
    assert await peer.gone() == protocol.EXIT_OK


async def test_closed_socket_ends_the_worker_while_it_decodes(peer: Peer) -> None:
    await peer.load(context=2048, batch=2048)
    for i in range(8):
        await peer.send(request(Text(f"{i} word" * 500), sampling=NO_END))
    await peer.until(Stats, lambda s: s.running > 0)
    peer.hang_up()
    await peer.gone()


@pytest.mark.parametrize("how", ["hang up", "terminate"])
async def test_worker_leaves_even_if_the_engine_thread_is_stuck(how: str) -> None:
    peer = Peer(program=("-c", STUCK))
    try:
        await peer.load()
        await peer.send(request("Hello"))
        await peer.until(Stats, lambda s: s.running == 1)
        if how == "hang up":
            peer.hang_up()
        else:
            peer.process.terminate()
        assert await peer.gone() == protocol.EXIT_OK
    finally:
        await peer.close()


async def test_closed_socket_ends_the_worker_before_and_during_the_load(peer: Peer) -> None:
    peer.hang_up()
    assert await peer.gone() == protocol.EXIT_OK
    second = Peer()
    await second.send(Load(launch()))
    await second.until(Loading)
    second.hang_up()
    await second.gone()
    await second.close()


async def test_sigterm_under_load_exits_cleanly_and_fails_what_is_open(peer: Peer) -> None:
    await peer.load()
    asked = request("Hello", sampling=NO_END)
    await peer.send(asked)
    await peer.until(Delta)
    peer.process.send_signal(signal.SIGTERM)
    ended = await peer.until(Failed)
    assert (ended.id, ended.code) == (asked.id, "shutting_down")
    assert await peer.gone() == protocol.EXIT_OK


async def test_sigint_is_ignored(peer: Peer) -> None:
    await peer.load()
    peer.process.send_signal(signal.SIGINT)
    await peer.send(request("Hello", max_tokens=2))
    await peer.until(Finish)


async def test_garbage_on_the_socket_ends_the_worker_with_a_fault(peer: Peer) -> None:
    await peer.load()
    await asyncio.get_running_loop().sock_sendall(peer._sock, b"\x05\x00\x00\x00hello")
    assert await peer.gone() == protocol.EXIT_FAULT
    assert "not a message" in peer.stderr()


async def test_daemon_that_does_not_read_loses_no_event() -> None:
    peer = Peer(send_buffer=4096)
    try:
        await peer.load(context=2048)
        # A text that no rounding changes: what is missing in it was lost.
        text = Regex("(abcdefghij){120}")
        asked = [request("Hello", constraint=text, group=str(i)) for i in range(8)]
        for one in asked:
            await peer.send(one)
        await wait_for(peer.is_full)
        for one in asked:
            if not any(isinstance(e, Finish) and e.id == one.id for e in peer.events):
                await peer.until(Finish, lambda e, wanted=one.id: e.id == wanted)
        deltas = [e for e in peer.events if isinstance(e, Delta)]
        for one in asked:
            assert "".join(d.content for d in deltas if d.id == one.id) == "abcdefghij" * 120
    finally:
        await peer.close()


async def test_worker_is_named_and_the_first_to_be_killed(peer: Peer) -> None:
    await peer.load()
    assert of_process(peer, "comm") == "edged test"
    assert int(of_process(peer, "oom_score_adj")) >= 500


def of_process(peer: Peer, name: str) -> str:
    return Path(f"/proc/{peer.process.pid}/{name}").read_text().strip()


async def test_nothing_but_frames_leaves_the_socket_and_stderr_stays_quiet(peer: Peer) -> None:
    await peer.load()
    await peer.send(request("Hello", max_tokens=3))
    await peer.until(Finish)
    peer.hang_up()
    await peer.gone()
    assert not [x for x in peer.stderr().splitlines() if "engine.slow_build" not in x]
