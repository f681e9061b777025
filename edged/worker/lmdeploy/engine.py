"""The LMDeploy engine: requests in, events out, all of it in the worker's loop.

TurboMind computes in threads of its own; prompts are rendered and tokenized in a pool. LMDeploy's
generator of each request is read by a task of its own (`_pump`), since a cancelled one may wait for
a native part that never answers: that wait has a limit, and then the worker is of no use.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edged.errors import EdgedError, InternalError, ShuttingDown, WrongModelKind
from edged.log import get_logger
from edged.protocol import (
    EXIT_FAULT,
    AdapterFile,
    Call,
    Delta,
    Embed,
    Event,
    Failed,
    Generate,
    Launch,
    Ready,
    Reply,
    Rerank,
    Started,
    Stats,
)
from edged.worker.lmdeploy.generation import Generation
from edged.worker.lmdeploy.library import Figures, Library, Output, Request
from edged.worker.lmdeploy.prepare import Prepared, Preparer

log = get_logger()

_ABORT_S = 10.0  # longest wait for the engine to let go of a request
_FIGURES_S = 0.5  # between two looks at the engine's counters
_CLOSE_S = 1.0
_LOOK_S = 0.5  # at the GPU's memory while weights arrive
_ALMOST = 0.99


def leave_process() -> None:
    """Leave an engine beyond repair with the process; the daemon starts a new one."""
    os._exit(EXIT_FAULT)


class LmdeployEngine:
    """`Engine` for one folder of safetensors; see `worker/engine.py` for the contract."""

    def __init__(
        self,
        on_fault: Callable[[], None] = leave_process,
        open_library: Callable[[Launch], Library] = Library,
        abort_s: float = _ABORT_S,
    ) -> None:
        """`on_fault` is called when the engine does not let go of a request within `abort_s`."""
        self._on_fault = on_fault
        self._open_library = open_library
        self._abort_s = abort_s
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        self._library: Library | None = None
        self._figures = Figures(0, 0, 0, 0.0)
        self._watch: asyncio.Task[None] | None = None
        self._open: dict[int, asyncio.Queue[Output | BaseException | None]] = {}
        self._closing = False
        self._n_prompt = self._n_cached = self._n_tokens = self._n_outputs = 0

    async def load(self, launch: Launch, progress: Callable[[float], None]) -> Ready:
        """Load the folder; see `Engine.load`."""
        settings = launch.lmdeploy
        assert settings is not None
        self._launch = launch
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        # what a person can mend is found before gigabytes are read
        self._preparer = await loop.run_in_executor(
            self._threads,
            lambda: Preparer(Path(launch.path), launch.context, settings, launch.output_format),
        )
        opening = loop.run_in_executor(self._threads, self._open_library, launch)
        weights = Weights(settings.weights_bytes + settings.cache_bytes)
        while not opening.done():
            await asyncio.wait({opening}, timeout=_LOOK_S)
            progress(weights.fraction())
        self._library = library = opening.result()
        library.start()
        self._watch = asyncio.create_task(self._look())
        return Ready(
            build=library.build,
            context=launch.context,
            n_vocab=self._preparer.vocab.n_tokens,
            architecture=library.architecture,
            chat_template=self._preparer.has_template,
            threads=0,
            load_s=round(time.monotonic() - started, 3),
        )

    def adapt(self, adapters: tuple[AdapterFile, ...]) -> None:
        """Have no adapters: the plan refuses them."""
        assert not adapters

    # ── generations ──

    async def generate(self, request: Generate) -> AsyncGenerator[Event, None]:
        """Yield the events of one generation; see `Engine.generate`."""
        try:
            prepared, asked = await self._ask(request)
        except EdgedError as error:
            yield Failed(request.id, error.code, error.message, error.param)
            return
        generation = Generation(request.id, prepared, self._preparer.vocab)
        generation.n_prompt = asked.n_prompt  # with images only the engine knows
        self._n_prompt += asked.n_prompt
        outputs: asyncio.Queue[Output | BaseException | None] = asyncio.Queue()
        self._open[request.id] = outputs
        pump: asyncio.Task[None] | None = None
        try:
            yield Started(request.id, asked.n_prompt)
            if prepared.echo:
                yield Delta(request.id, prepared.echo, n_tokens=0)
            pump = asyncio.create_task(_pump(asked, outputs))
            while not generation.over:
                for event in self._events(generation, await outputs.get()):
                    yield event
        except EdgedError as error:
            yield Failed(request.id, error.code, error.message, error.param)
        finally:
            del self._open[request.id]
            self._n_cached += generation.n_cached
            self._n_tokens += generation.n_tokens
            await self._let_go(asked, pump)

    def _events(self, generation: Generation, output: Output | BaseException | None) -> list[Event]:
        """Return what the engine's next word means for the client; raises EdgedError."""
        if isinstance(output, EdgedError):
            raise output
        if output is None or isinstance(output, BaseException):
            log.error("engine.request_failed", id=generation.id, exc_info=output)
            raise InternalError("the engine ended this request without a reason; see the log")
        self._n_outputs += 1
        generation.n_cached = max(generation.n_cached, output.cached)
        events = generation.feed(output.tokens, output.logprobs) if output.tokens else []
        if generation.over or output.finish is None:
            return events
        if output.finish == "abort":
            raise ShuttingDown("the engine gave this request up; try again")
        last = generation.ended() if output.finish == "stop" else generation.finish("length")
        return [*events, *last]

    async def _ask(self, request: Generate) -> tuple[Prepared, Request]:
        """Return the request as the engine has taken it; nothing runs yet."""
        self._refuse_if_closing()
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._threads, self._preparer.prepare, request)
        self._refuse_if_closing()
        assert self._library is not None
        asked = await self._library.request(
            prepared.config,
            tokens=None if prepared.messages else prepared.tokens,
            messages=prepared.messages,
            tools=prepared.tools,
            template_kwargs=prepared.template_kwargs or None,
        )
        return prepared, asked

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise ShuttingDown("the model is being stopped; try again")

    async def _let_go(self, asked: Request, pump: asyncio.Task[None] | None) -> None:
        """Have the engine forget a request, whatever state it is in; within the limit."""
        if pump is not None and not pump.done():
            pump.cancel()
            await asyncio.wait({pump}, timeout=self._abort_s)
            if not pump.done():
                log.error("engine.stuck", reason=f"no end of a request in {self._abort_s:g} s")
                self._on_fault()
        asked.forget()

    # ── the rest ──

    async def call(self, request: Call) -> Reply:
        """Answer a request that is no generation; see `Engine.call`."""
        if isinstance(request, Embed | Rerank):
            raise WrongModelKind.of("chat")
        self._refuse_if_closing()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._preparer.call, request)

    async def _look(self) -> None:
        """Follow the engine's counters; one that does not answer makes no progress."""
        assert self._library is not None
        while True:
            try:
                self._figures = await self._library.figures()
            except Exception as error:  # noqa: BLE001 - the daemon judges by the progress
                log.warning("engine.no_figures", reason=f"{type(error).__name__}: {error}")
            await asyncio.sleep(_FIGURES_S)

    def stats(self) -> Stats:
        """Return the counters of now."""
        figures, pool = self._figures, self._launch.pool
        return Stats(
            progress=figures.tick + self._n_outputs,
            running=figures.running,
            waiting=figures.waiting,
            cells_used=round(figures.cache_usage * pool),
            cells=pool,
            prompt_tokens=self._n_prompt - self._n_cached,
            cached_tokens=self._n_cached,
            completion_tokens=self._n_tokens,
            step_ms=0.0,
        )

    async def close(self, *, save_s: float = 0.0) -> None:  # noqa: ARG002 - it saves nothing
        """Fail what is open and let go of the model; its memory comes back with the process."""
        self._closing = True
        error = ShuttingDown("the model was stopped before the answer was complete")
        for outputs in self._open.values():
            outputs.put_nowait(error)
        if self._watch is not None:
            self._watch.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._library is not None:
            # native code may wait for ever; the end of the process takes the rest
            closing = asyncio.get_running_loop().run_in_executor(None, self._library.close)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(closing), _CLOSE_S)


async def _pump(asked: Request, outputs: asyncio.Queue[Output | BaseException | None]) -> None:
    """Read the engine's words on a request into a queue; None is the end."""
    try:
        async with contextlib.aclosing(asked.outputs()) as words:
            async for word in words:
                outputs.put_nowait(word)
    except Exception as error:  # noqa: BLE001 - it is told where the request is
        outputs.put_nowait(error)
    else:
        outputs.put_nowait(None)


class Weights:
    """How far a load has got, by what the process has read."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = max(1, n_bytes)
        self._begin = self._read()

    def fraction(self) -> float:
        """Return 0 to 1; it moves as long as anything moves."""
        return min(_ALMOST, (self._read() - self._begin) / self._n_bytes)

    @staticmethod
    def _read() -> int:
        """Return bytes read, and mapped pages of files that came to memory."""
        read = 0
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = Path("/proc/self/io").read_text().splitlines()
            read += next(int(line.split()[1]) for line in lines if line.startswith("rchar"))
        with contextlib.suppress(OSError, ValueError, IndexError):
            read += int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        return read
