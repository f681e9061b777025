"""The daemon's view of one worker: spawn, frames, liveness, stop, reap.

Everything here runs in the daemon's asyncio loop; nothing blocks it. One task per worker, `_live`,
waits for the end of the process and is the only one to reap it and to write `exit`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import IO, Any, cast

import msgspec
from msgspec import Struct

from edged import errors
from edged.framing import FrameError
from edged.log import get_logger
from edged.protocol import (
    LAST,
    Abort,
    AdapterFile,
    Adapters,
    Event,
    Failed,
    Launch,
    Load,
    LoadFailed,
    Loading,
    Ready,
    Request,
    Stats,
    Step,
)
from edged.supervisor import footprint
from edged.supervisor.connection import Connection
from edged.supervisor.lifecycle import (
    TICK_S,
    Limits,
    Liveness,
    Steps,
    Work,
    blames_requests,
    cause_of_death,
    is_permanent,
)
from edged.supervisor.spawning import Spawned, spawn
from edged.supervisor.stderr_tail import StderrTail
from edged.supervisor.stream import Stream

log = get_logger()

WORKER_ARGV = (sys.executable, "-m", "edged.worker")  # the socket's fd number is appended

_UNKILLABLE_S = 30.0
_REAP_S = 2.0  # the socket's or the pipe's end follows the exit at once, or a grandchild holds it


class BadModelError(Exception):
    """The worker says that this launch can never work; the message is its own."""


class Exit(Struct, frozen=True):
    """How a worker ended. `asked`: by `stop` or `kill` of the supervisor, not by itself."""

    returncode: int
    cause: str
    asked: bool
    blames_requests: bool  # it may have died of one of the requests that it held


class WorkerProcess:
    """One child process and the requests that are open with it."""

    def __init__(
        self,
        launch: Launch,
        argv: Sequence[str] = WORKER_ARGV,
        *,
        adapters: tuple[AdapterFile, ...] = (),
        limits: Limits = Limits(),  # noqa: B008 - frozen
        steps: Steps | None = None,
        on_change: Callable[[], None] = lambda: None,
        on_death: Callable[[WorkerProcess], None] = lambda _: None,
    ) -> None:
        self.launch = launch
        self.pid: int | None = None
        self.ready: Ready | None = None
        self.stats: Stats | None = None
        self.loaded_fraction = 0.0
        self.answered = 0  # requests that ended well
        self.exit: Exit | None = None
        self.usage: footprint.Usage | None = None  # as of the last tick
        self._adapters = adapters  # that it has, or gets when it is ready
        self._argv = argv
        self._limits = limits
        self._on_death = on_death  # that it may owe to a request; its requests still count as held
        self._on_change = on_change  # called when it became ready, and when it is gone
        self._streams: dict[int, Stream] = {}
        self._last_id = 0
        self._liveness = Liveness(limits, steps, shows_work=launch.lmdeploy is None)
        self._asked: str | None = None  # why we ended it, for the requests that it still held
        self._is_hang = False  # of itself
        self._was_stopped = False  # by somebody else, when it was found hung
        self._verdict = ""  # of `give_up`
        self._load_error: str | None = None
        self._stderr = StderrTail(launch.model)
        self._connection = Connection(self._receive, self._broken)
        self._became_ready: asyncio.Future[Ready]
        self._life: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """True from `start` until the process was reaped."""
        return self._life is not None and self.exit is None

    @property
    def is_condemned(self) -> bool:
        """True once `give_up` was called: what it took last is no measure for others."""
        return bool(self._verdict)

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
        found = footprint.read(self.pid) if self.pid is not None and self.alive else None
        return found.resident_bytes if found else None

    async def proportional_bytes(self) -> int:
        """Return PSS and swap of the process; what `memory_bytes` says where that is not told."""
        found = None
        if self.pid is not None and self.alive:
            found = await asyncio.to_thread(footprint.proportional_bytes, self.pid)
        return found or self.memory_bytes() or 0

    def memory_bytes(self) -> int | None:
        """Return what the process takes now, resident and swapped; None when it is gone."""
        found = footprint.read(self.pid) if self.pid is not None and self.alive else None
        return found.taken_bytes if found else None

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
        try:
            spawned = spawn(self._own_argv())
        except OSError as error:  # no descriptor, process id or memory left; no such program
            cause = f"cannot start a worker: {error}"
            self.exit = Exit(os.EX_OSERR, cause, asked=False, blames_requests=False)
            raise errors.WorkerCrashed(cause) from error
        self.pid = spawned.process.pid
        self._life = asyncio.create_task(self._live(spawned), name=f"worker {self.pid}")
        return await asyncio.shield(self._became_ready)

    def _own_argv(self) -> Sequence[str]:
        """Return the program of this launch: LMDeploy has an interpreter of its own."""
        settings = self.launch.lmdeploy
        is_real = tuple(self._argv) == WORKER_ARGV
        return (settings.python, *self._argv[1:]) if settings and is_real else self._argv

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

    async def _live(self, spawned: Spawned) -> None:
        loop = asyncio.get_running_loop()
        process, ours, pidfd = spawned
        died = asyncio.Event()
        loop.add_reader(pidfd, died.set)
        hung = ""
        try:
            await loop.create_unix_connection(lambda: self._connection, sock=ours)
            await self._stderr.follow(cast("IO[bytes]", process.stderr))
            self._connection.send(Load(self.launch))
            while not died.is_set():
                self.usage = footprint.read(process.pid) or self.usage
                if not hung and (hung := self._why_hung()):
                    if footprint.is_stopped(process.pid):
                        self._was_stopped = True
                        hung += "; somebody has stopped it (SIGSTOP)"
                    self._make_it_tell()
                elif hung:
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
            cause = self._verdict or hung or self._connection.broken
            self._is_hang = bool(hung) and not self._was_stopped
            self._gone(returncode, cause or cause_of_death(returncode, self._stderr.last))

    def _why_hung(self) -> str:
        return self._liveness.tick(time.monotonic(), busy=self.open > 0, work=self._work()) or ""

    def _work(self) -> Work | None:
        """Return what its threads have done, and, where that matters now, what they wait for."""
        usage = self.usage
        if usage is None or self.pid is None:
            return None
        loop_waits, engine_waits = False, False
        if self._liveness.is_stuck:
            loop_waits, engine_waits = footprint.waits(self.pid)
        return Work(usage.engine_s, usage.loop_s, engine_waits=engine_waits, loop_waits=loop_waits)

    def _make_it_tell(self) -> None:
        """End a hung worker so that faulthandler writes where each thread stood to its stderr."""
        self._signal(signal.SIGABRT)
        self._signal(signal.SIGCONT)  # one that was stopped dies of it too

    def give_up(self, why: str) -> None:
        """End the process at once for a fault of its own; its requests fail with `why`."""
        self._verdict = self._verdict or why
        self._signal(signal.SIGKILL)

    def _gone(self, returncode: int, cause: str) -> None:
        self.exit = Exit(
            returncode,
            self._load_error or cause,
            asked=self._asked is not None,
            blames_requests=blames_requests(returncode, hung=self._is_hang)
            and not self._verdict
            and not self._was_stopped,
        )
        if self._asked is not None:
            code, message = errors.ShuttingDown.code, self._asked
        else:
            code = errors.WorkerCrashed.code
            message = f"the worker of model {self.launch.model!r} died: {cause}"
        if self.exit.blames_requests and not self.exit.asked:
            self._on_death(self)
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
        now = time.monotonic()
        match message:
            case Step(events):
                self._liveness.heard(now)
                for event in events:
                    self._deliver(event)
            case Stats():
                self._liveness.heard(now, message)
                self.stats = message
            case Loading(fraction):
                self._liveness.heard(now)
                if fraction != self.loaded_fraction:  # the same again only says that its loop lives
                    self._liveness.loading(now)
                self.loaded_fraction = fraction
            case Ready():
                self._liveness.ready(now)
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
            self.answered += not isinstance(stream.last, Failed)
            if isinstance(stream.last, Failed) and stream.last is not event:
                self._connection.send(Abort(stream.id))  # overflow: the engine still works on it

    # ── requests ──

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """Yield the events of `request` up to its one last event (`LAST`); closing it aborts."""
        self._last_id += 1
        stream = Stream(self._last_id)
        # Registered before the first wait: whatever happens to the worker ends this stream too.
        if self.alive:
            if not self._streams:
                self._liveness.opened(time.monotonic())
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
                if type(event) in LAST:
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
