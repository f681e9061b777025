"""The worker process: `python -m edged.worker FD`.

One inherited socket, one engine. The first frame is `Load`; afterwards requests come down and the
events of each turn of the loop go up in one `Step` frame. The end of the stream means that the
daemon is gone: leave at once, even if native code is stuck. SIGTERM stops promptly with status 0;
SIGINT is the daemon's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NoReturn

import uvloop

from edged import heap, protocol
from edged import log as logging
from edged.errors import EdgedError, InternalError
from edged.framing import FrameError, Frames
from edged.protocol import (
    Abort,
    Adapters,
    Call,
    Event,
    Failed,
    Generate,
    Launch,
    LoadFailed,
    Loading,
    Request,
)
from edged.worker.engine import BadModelError, Engine, EngineMissingError

log = logging.get_logger()

AsyncMessages = AsyncGenerator[protocol.ToWorker, None]

_HEARTBEAT_S = 0.5  # Loading frames
_STATS_S = 1.0
_LEAVE_S = 2.0  # longest wait for the engine thread
_SAVE_S = 3.0  # and for what it saves, if the daemon lives and asked it to leave
_READ_BYTES = 1 << 16
_OOM_SCORE = 500  # the kernel takes a worker long before the daemon
_SWITCH_S = 0.001  # the engine thread gets the interpreter back at once after a decode
_PR_SET_NAME = 15


class Worker:
    """Socket on one side, engine on the other. Lives in the asyncio loop."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._frames = Frames(protocol.ToWorker)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._outgoing: list[Event] = []
        self._flush_due = False
        self._stopped = asyncio.Event()  # SIGTERM

    async def run(self) -> int:
        """Serve until the stream ends or SIGTERM; return the exit status."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopped.set)
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._sock)
        stop = asyncio.ensure_future(self._stopped.wait())
        life = asyncio.ensure_future(self._live())
        try:
            await asyncio.wait({stop, life}, return_when=asyncio.FIRST_COMPLETED)
            return life.result() if life.done() else protocol.EXIT_OK
        finally:
            stop.cancel()
            life.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await life

    async def _live(self) -> int:
        messages = self._messages()
        first = await anext(messages, None)
        if first is None:
            return protocol.EXIT_OK
        if not isinstance(first, protocol.Load):
            raise FrameError(f"the first frame is {type(first).__name__}, not Load")
        name_process(f"edged {first.launch.model}")
        return await self._load_and_serve(first.launch, messages)

    async def _messages(self) -> AsyncMessages:
        """Yield what the daemon sends; ends with the stream."""
        while data := await self._read():
            for message in self._frames.feed(data):
                yield message

    async def _read(self) -> bytes:
        try:
            return await self._reader.read(_READ_BYTES)
        except ConnectionError:  # a daemon that was killed
            return b""

    async def _load_and_serve(self, launch: Launch, messages: AsyncMessages) -> int:
        try:
            engine = make_engine(launch)
        except EngineMissingError as error:
            return await self._fail(error, protocol.EXIT_NO_ENGINE)
        serving = asyncio.ensure_future(self._serve(engine, messages))
        loading = asyncio.ensure_future(self._load(engine, launch))
        try:
            await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():  # the stream ended meanwhile
                return protocol.EXIT_OK
            failure = loading.result()
            if failure is not None:
                return await self._fail(*failure)
            statistics = asyncio.ensure_future(self._report(engine))
            try:
                await serving
            finally:
                statistics.cancel()
            return protocol.EXIT_OK
        finally:
            loading.cancel()
            serving.cancel()
            await self._leave(engine)

    async def _load(self, engine: Engine, launch: Launch) -> tuple[Exception, int] | None:
        """Load with signs of life; return what went wrong and the exit status it deserves."""
        fraction = 0.0

        def on_progress(value: float) -> None:
            nonlocal fraction
            fraction = value

        loading = asyncio.ensure_future(engine.load(launch, on_progress))
        try:
            while not loading.done():
                self._send(Loading(round(fraction, 3)))
                await asyncio.wait({loading}, timeout=_HEARTBEAT_S)
            ready = loading.result()
        except BadModelError as error:
            return error, protocol.EXIT_BAD_MODEL
        except EngineMissingError as error:
            return error, protocol.EXIT_NO_ENGINE
        except (RuntimeError, OSError, MemoryError) as error:
            return error, protocol.EXIT_FAULT
        finally:
            loading.cancel()
        self._send(ready)
        return None

    async def _fail(self, error: Exception, status: int) -> int:
        self._send(LoadFailed(str(error) or type(error).__name__))
        await self._empty()
        return status

    # ── requests ──

    async def _serve(self, engine: Engine, messages: AsyncMessages) -> None:
        async for message in messages:
            if isinstance(message, Request):
                self._start(engine, message)
            elif isinstance(message, Adapters):
                engine.adapt(message.adapters)
            elif isinstance(message, Abort):
                task = self._tasks.get(message.id)
                if task is not None:
                    task.cancel()

    def _start(self, engine: Engine, request: Request) -> None:
        if request.id in self._tasks:
            log.warning("worker.duplicate_id", id=request.id)
            return
        if isinstance(request, Generate):
            task = asyncio.ensure_future(self._generate(engine, request))
        else:
            task = asyncio.ensure_future(self._call(engine, request))
        self._tasks[request.id] = task
        task.add_done_callback(lambda done: self._end(request.id, done))

    def _end(self, request_id: int, task: asyncio.Task[None]) -> None:
        del self._tasks[request_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("request.fault", id=request_id, exc_info=error)

    async def _generate(self, engine: Engine, request: Generate) -> None:
        events = engine.generate(request)
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    self._tell(event)
                    # A daemon that does not read holds the request up here, not the engine.
                    await self._drain()
        except Exception:
            self._tell(Failed(request.id, InternalError.code, "the engine failed; see the log"))
            raise

    async def _call(self, engine: Engine, request: Call) -> None:
        try:
            self._tell(await engine.call(request))
        except EdgedError as error:
            self._tell(Failed(request.id, error.code, error.message, error.param))
        except Exception:
            self._tell(Failed(request.id, InternalError.code, "the engine failed; see the log"))
            raise

    def _tell(self, event: Event) -> None:
        self._outgoing.append(event)
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        events, self._outgoing = self._outgoing, []
        self._send(protocol.Step(events))

    async def _report(self, engine: Engine) -> None:
        while True:
            self._send(engine.stats())
            await asyncio.sleep(_STATS_S)

    # ── the socket ──

    def _send(self, message: protocol.ToDaemon) -> None:
        if not self._writer.is_closing():  # the daemon is gone; the reader sees it as well
            self._writer.write(self._frames.encode(message))

    async def _drain(self) -> None:
        with contextlib.suppress(ConnectionError):  # the reader sees the end as well
            await self._writer.drain()

    async def _empty(self) -> None:
        """Wait until every byte has left: the process ends without another turn of the loop."""
        if self._writer.is_closing():
            return
        self._writer.transport.set_write_buffer_limits(0)
        await self._drain()

    async def _leave(self, engine: Engine) -> None:
        """Close within `_LEAVE_S` and `_SAVE_S`; the end of the process takes the rest."""
        save_s = _SAVE_S if self._stopped.is_set() else 0.0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_S + save_s):
                await engine.close(save_s=save_s)
                if self._tasks:
                    await asyncio.wait(self._tasks.values())
                await self._empty()


def make_engine(launch: Launch) -> Engine:
    """Return the engine of a launch; raises EngineMissingError."""
    if launch.engine == "lmdeploy":
        try:
            from edged.worker.lmdeploy.engine import LmdeployEngine  # noqa: PLC0415
        except ImportError as error:
            raise EngineMissingError(
                f"the engine lmdeploy needs what `edged setup-cuda` installs: {error}"
            ) from error
        return LmdeployEngine()
    # Imported here: numpy and its friends are of no use to a worker of another engine.
    if launch.kind != "chat":
        from edged.worker.llamacpp.embedding import EmbeddingEngine  # noqa: PLC0415

        return EmbeddingEngine()
    from edged.worker.llamacpp.engine import LlamaCppEngine  # noqa: PLC0415

    return LlamaCppEngine()


def name_process(name: str) -> None:
    """Show `name` in ps and top (15 bytes at the most)."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def _expect_to_be_killed_first() -> None:
    with contextlib.suppress(OSError):  # not permitted in some containers
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))


def main() -> NoReturn:
    """Run the worker on the socket whose descriptor is the only argument."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What goes well is told by the daemon, which knows it from the frames.
    logging.configure(os.environ.get("EDGED_LOG", "warning"))
    sys.setswitchinterval(_SWITCH_S)
    _expect_to_be_killed_first()
    # What one thread frees is of use to another: 2,000 mixed requests left a worker of 97.5 MB
    # 2.6 % larger, and 1.3 % with one.
    heap.use_one_arena()
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.setblocking(False)

    async def live() -> int:
        return await Worker(sock).run()

    status = protocol.EXIT_FAULT
    try:
        status = uvloop.run(live())
    except Exception:
        log.exception("worker.fault")
    finally:
        with contextlib.suppress(OSError):  # a daemon that was killed took the pipe with it
            sys.stderr.flush()
        # Not sys.exit: a thread that is stuck in native code must not hold the process.
        os._exit(status)


if __name__ == "__main__":
    main()
