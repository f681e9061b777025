"""The daemon's view of one worker: spawn, frames, liveness, stop, reap.

Everything here runs in the daemon's asyncio loop; nothing blocks it. One task per worker, `_live`,
waits for the end of the process and is the only one to reap it and to write `exit`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import IO, Any, cast

import msgspec
from msgspec import Struct

from edged import errors
from edged.log import get_logger
from edged.protocol import (
    LAST,
    Abort,
    AdapterFile,
    Adapters,
    Event,
    Failed,
    FrameError,
    Frames,
    Launch,
    Load,
    LoadFailed,
    Loading,
    Ready,
    Request,
    Stats,
    Step,
    ToDaemon,
    ToWorker,
)
from edged.supervisor.lifecycle import TICK_S, Limits, Liveness, cause_of_death, is_permanent
from edged.supervisor.stderr_tail import StderrTail
from edged.supervisor.stream import Stream

log = get_logger()

WORKER_ARGV = (sys.executable, "-m", "edged.worker")  # the socket's fd number is appended

_MAX_FRAME_UP_BYTES = 64 << 20  # 2,000 vectors of 4,096 are 32 MiB; more is a worker gone mad
_WRITE_HIGH_BYTES = 1 << 20  # unsent requests above this make the next one wait
_UNKILLABLE_S = 30.0
_REAP_S = 2.0  # the socket's or the pipe's end follows the exit at once, or a grandchild holds it


class BadModelError(Exception):
    """The worker says that this launch can never work; the message is its own."""


class Exit(Struct, frozen=True):
    """How a worker ended. `asked`: by `stop` or `kill` of the supervisor, not by itself."""

    returncode: int
    cause: str
    asked: bool


class WorkerProcess:
    """One child process and the requests that are open with it."""

    def __init__(
        self,
        launch: Launch,
        argv: Sequence[str] = WORKER_ARGV,
        *,
        adapters: tuple[AdapterFile, ...] = (),
        limits: Limits = Limits(),  # noqa: B008 - frozen
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.launch = launch
        self.pid: int | None = None
        self.ready: Ready | None = None
        self.stats: Stats | None = None
        self.loaded_fraction = 0.0
        self.exit: Exit | None = None
        self._adapters = adapters  # that it has, or gets when it is ready
        self._argv = argv
        self._limits = limits
        self._on_change = on_change  # called when it became ready, and when it is gone
        self._streams: dict[int, Stream] = {}
        self._last_id = 0
        self._liveness = Liveness(limits)
        self._asked: str | None = None  # why we ended it, for the requests that it still held
        self._load_error: str | None = None
        self._stderr = StderrTail(launch.model)
        self._connection = _Connection(self._receive, self._broken)
        self._became_ready: asyncio.Future[Ready]
        self._life: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """True from `start` until the process was reaped."""
        return self._life is not None and self.exit is None

    @property
    def open(self) -> int:
        """Number of requests that this worker holds."""
        return len(self._streams)

    @property
    def stderr_tail(self) -> tuple[str, ...]:
        """The last lines that the worker wrote."""
        return self._stderr.lines

    def rss_bytes(self) -> int | None:
        """Return the resident set of the process now, None when it is gone."""
        return rss_bytes(self.pid) if self.pid is not None and self.alive else None

    def adapt(self, adapters: tuple[AdapterFile, ...]) -> None:
        """Let it have these adapters from now on; requests that come later find them."""
        if adapters != self._adapters:
            self._adapters = adapters
            if self.ready is not None:
                self._connection.send(Adapters(adapters))

    # ── life ──

    async def start(self) -> Ready:
        """Spawn the worker and wait until it serves.

        Raises BadModelError when it can never work and WorkerCrashed when it may next time. If
        this is cancelled the process lives on: call `stop`.
        """
        self._became_ready = asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair()
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - vfork and exec, a millisecond
                [*self._argv, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C belongs to the daemon alone
            )
        except OSError as error:
            ours.close()
            raise errors.WorkerCrashed(f"cannot start a worker: {error}") from error
        finally:
            theirs.close()
        self.pid = process.pid
        self._life = asyncio.create_task(self._live(process, ours), name=f"worker {process.pid}")
        return await asyncio.shield(self._became_ready)

    async def stop(self, why: str, limit_s: float | None = None) -> None:
        """End the process, by SIGTERM first and SIGKILL after `limit_s`; return when reaped.

        Requests that it still holds fail with `shutting_down` and `why`.
        """
        if self._life is None:
            return
        self._asked = self._asked or why
        self._signal(signal.SIGTERM)
        limit_s = self._limits.stop_s if limit_s is None else limit_s
        done, _ = await asyncio.wait([self._life], timeout=limit_s)
        if not done:
            log.warning("worker.kill", model=self.launch.model, pid=self.pid, after_s=limit_s)
            self._signal(signal.SIGKILL)
            done, _ = await asyncio.wait([self._life], timeout=_UNKILLABLE_S)
            if not done:  # asleep in the kernel (disk, driver); it is reaped once it wakes
                log.error("worker.unkillable", model=self.launch.model, pid=self.pid)

    def kill(self, why: str) -> None:
        """End the process at once; `_live` reaps it."""
        self._asked = self._asked or why
        self._signal(signal.SIGKILL)

    async def _live(self, process: subprocess.Popen[bytes], ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(process.pid)
        died = asyncio.Event()
        loop.add_reader(pidfd, died.set)
        hung = ""
        try:
            await loop.create_unix_connection(lambda: self._connection, sock=ours)
            await self._stderr.follow(cast("IO[bytes]", process.stderr))
            self._connection.send(Load(self.launch))
            while not died.is_set():
                hung = hung or self._liveness.tick(time.monotonic(), busy=self.open > 0) or ""
                if hung:
                    self._signal(signal.SIGKILL)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(died.wait(), TICK_S)
            # What it said before it died is still in the socket and in the pipe.
            await self._connection.ended(_REAP_S)
            await self._stderr.ended(_REAP_S)
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            # The whole session, while the zombie keeps its id from being given to others.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            returncode = process.wait()
            self._connection.close()
            self._stderr.close()
            cause = hung or self._connection.broken
            self._gone(returncode, cause or cause_of_death(returncode, self._stderr.last))

    def _gone(self, returncode: int, cause: str) -> None:
        self.exit = Exit(returncode, self._load_error or cause, asked=self._asked is not None)
        if self._asked is not None:
            code, message = errors.ShuttingDown.code, self._asked
        else:
            code = errors.WorkerCrashed.code
            message = f"the worker of model {self.launch.model!r} died: {cause}"
        for stream in self._streams.values():
            stream.put(Failed(stream.id, code, message))
        self._streams.clear()
        if not self._became_ready.done():
            permanent = is_permanent(returncode) and self._asked is None
            failure = BadModelError if permanent else errors.WorkerCrashed
            self._became_ready.set_exception(failure(self.exit.cause))
            self._became_ready.exception()  # whoever waited may be gone: not a forgotten error
        self._on_change()

    def _signal(self, number: signal.Signals) -> None:
        if self.alive and self.pid is not None:
            # Until `_live` has reaped it the pid is ours, be it a zombie's.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _broken(self) -> None:
        """Frames cannot go on: a worker that cannot be talked to is of no use."""
        self._signal(signal.SIGKILL)

    # ── frames ──

    def _receive(self, message: Any) -> None:
        match message:
            case Step(events):
                self._liveness.heard()
                for event in events:
                    self._deliver(event)
            case Stats():
                self._liveness.heard(message)
                self.stats = message
            case Loading(fraction):
                if fraction != self.loaded_fraction:  # the same again only says that its loop lives
                    self._liveness.loading()
                self.loaded_fraction = fraction
            case Ready():
                self._liveness.ready()
                self.ready = message
                if self._adapters:
                    self._connection.send(Adapters(self._adapters))
                if not self._became_ready.done():
                    self._became_ready.set_result(message)
                self._on_change()
            case LoadFailed(text):
                self._load_error = text

    def _deliver(self, event: Event) -> None:
        stream = self._streams.get(event.id)
        if stream is None:
            return  # aborted: the worker did not know yet
        stream.put(event)
        if stream.ended:
            del self._streams[event.id]
            if isinstance(stream.last, Failed) and stream.last is not event:
                self._connection.send(Abort(stream.id))  # overflow: the engine still works on it

    # ── requests ──

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """Yield the events of `request` up to its one last event (`LAST`); closing it aborts."""
        self._last_id += 1
        stream = Stream(self._last_id)
        # Registered before the first wait: whatever happens to the worker ends this stream too.
        if self.alive:
            self._streams[stream.id] = stream
        else:
            cause = self.exit.cause if self.exit else "it was never started"
            stream.put(Failed(stream.id, errors.WorkerCrashed.code, cause))
        try:
            await self._connection.writable()
            if not stream.ended:
                self._send(stream, request)
            while True:
                event = await stream.next()
                yield event
                if isinstance(event, LAST):
                    return
        finally:
            if self._streams.pop(stream.id, None) is not None:
                self._connection.send(Abort(stream.id))

    def _send(self, stream: Stream, request: Request) -> None:
        try:
            self._connection.send(msgspec.structs.replace(request, id=stream.id))
        except FrameError as error:
            del self._streams[stream.id]
            stream.put(Failed(stream.id, errors.BodyTooLarge.code, str(error)))


class _Connection(asyncio.Protocol):
    """The daemon's end of the socket: frames in, frames out, never blocking."""

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
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        if self.broken:
            return
        try:
            for message in self._frames.feed(data):
                self._receive(message)
        except FrameError as error:
            self._break(f"it spoke nonsense: {error}")

    def eof_received(self) -> bool:
        return False  # close our side as well

    def connection_lost(self, _error: Exception | None) -> None:
        self._lost.set()
        self._may_write.set()
        # A worker exits by itself at the end of its socket; one that stays is stuck.
        asyncio.get_running_loop().call_later(_REAP_S, self._break, "it closed its socket")

    def _break(self, why: str) -> None:
        self.broken = self.broken or why
        self._on_broken()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()


def rss_bytes(pid: int) -> int | None:
    """Return the resident set of a process in bytes, None when there is none."""
    try:
        statm = Path(f"/proc/{pid}/statm").read_text(encoding="ascii")
    except OSError:
        return None
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")
