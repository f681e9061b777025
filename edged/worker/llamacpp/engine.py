"""The llama.cpp engine: asyncio on one side, one thread with the model on the other.

This is the loop's side: it renders, tokenizes and hands out events. The other side (`thread.py`)
owns runner, scheduler and every `Generation`; it takes commands between two steps and posts the
events of a step with a single call into the loop. The only things that cross otherwise are
counters (written by the thread, read by the loop) and the runner's interrupt flag.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msgspec.structs import replace

from edged import protocol
from edged.errors import EdgedError, InvalidRequest, ShuttingDown, WrongModelKind
from edged.log import get_logger
from edged.protocol import (
    AdapterFile,
    Call,
    Embed,
    Event,
    Failed,
    Finish,
    Generate,
    Launch,
    Ready,
    Reply,
    Rerank,
    Stats,
)
from edged.store import folders
from edged.worker import output
from edged.worker.engine import BadModelError
from edged.worker.llamacpp.adapters import Adapters, Lent
from edged.worker.llamacpp.constrain import Grammars, Guide
from edged.worker.llamacpp.drafter import open_drafter
from edged.worker.llamacpp.encoding import Encoder
from edged.worker.llamacpp.file_digest import file_digest
from edged.worker.llamacpp.generation import Generation
from edged.worker.llamacpp.library import LOG, leave_process
from edged.worker.llamacpp.prepare import Prepared, Preparer
from edged.worker.llamacpp.runner import Runner
from edged.worker.llamacpp.saved import SavedPrefixes, forget_all, key_of
from edged.worker.llamacpp.scheduler import Scheduler
from edged.worker.llamacpp.speculation import Speculation
from edged.worker.llamacpp.thread import EngineThread

log = get_logger()


class LlamaCppEngine:
    """`Engine` for one GGUF file; see `worker/engine.py` for the contract."""

    def __init__(self, on_fault: Callable[[], None] = leave_process) -> None:
        """`on_fault` is called in the engine thread when the context cannot be trusted any more."""
        self._on_fault = on_fault
        self._open: dict[int, asyncio.Queue[Event]] = {}  # by request id; the loop's
        self._gone: set[int] = set()  # aborted, perhaps still in a step; the loop's
        self._preparers = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        # One thread loads, warms up and runs. OpenMP keeps a team of threads for each thread that
        # has decoded; with a second team there are more of them than cores, its barriers stop
        # spinning, and decoding on two cores falls to 0.57 of its speed.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._running = False
        self._ended = asyncio.Event()  # the thread is at its end
        self._closing = False

    # ── the loop's side ──

    async def load(self, launch: Launch, progress: Callable[[float], None]) -> Ready:
        """Load the file; see `Engine.load`."""
        self._loop = loop = asyncio.get_running_loop()
        started = time.monotonic()

        def on_progress(fraction: float) -> bool:  # in the loading thread
            if not self._closing:
                loop.call_soon_threadsafe(progress, fraction)
            return not self._closing

        self._runner = runner = await loop.run_in_executor(
            self._executor, lambda: Runner(launch, output.SHOWN_TOKENS, on_progress)
        )
        self._drafter = await loop.run_in_executor(
            self._executor, lambda: open_drafter(launch, runner, on_progress)
        )
        self._context = min(launch.context, runner.cells)
        if self._context > runner.facts.n_ctx_train > 0:
            log.warning(
                "engine.context_beyond_training",
                context=self._context,
                trained=runner.facts.n_ctx_train,
            )
        if self._context < 2:  # noqa: PLR2004 - one token of prompt, one of answer
            raise BadModelError(f"a context of {self._context} tokens holds no answer")
        scheduler = Scheduler(
            cells=runner.cells,
            parallel=min(launch.parallel, runner.sequences - 1),  # one slot is a resident's
            batch=runner.batch,
            slots=runner.sequences,
            cuttable=runner.facts.cuttable,
            window=runner.facts.window,
            keeps_checkpoints=runner.forgets,
        )
        settings = launch.llamacpp
        may_guess = settings is not None and settings.speculation and runner.facts.cuttable
        # The rows of logits that llama.cpp keeps for residents, which never need them.
        speculation = Speculation(
            most=runner.sequences - launch.parallel if may_guess else 0, drafter=self._drafter
        )
        saved = await loop.run_in_executor(self._preparers, _saved_prefixes, launch, runner)
        self._thread = EngineThread(runner, scheduler, speculation, self._post, saved)
        self._adapters = Adapters(runner, self._thread.between_steps)
        self._preparer = Preparer(
            runner.vocab,
            runner.facts.chat_templates,
            self._context,
            launch.output_format,
            projector=runner.projector,
            batch=runner.batch,
        )
        self._encoder = Encoder(runner.projector) if runner.projector is not None else None
        self._grammars = Grammars(runner.vocab)
        self._executor.submit(self._run)
        self._running = True
        return Ready(
            build=runner.facts.build,
            context=self._context,
            n_vocab=runner.facts.n_vocab,
            architecture=runner.facts.architecture,
            chat_template=self._preparer.has_template,
            threads=runner.threads[0],
            load_s=round(time.monotonic() - started, 3),
            buffers=LOG.take_buffers(),
        )

    def adapt(self, adapters: tuple[AdapterFile, ...]) -> None:
        """Have these adapters; see `Engine.adapt`."""
        self._adapters.want(adapters)

    def generate(self, request: Generate) -> AsyncGenerator[Event, None]:
        """Yield the events of one generation; see `Engine.generate`."""
        return self._with_adapters(request) if request.adapters else self._generate(request)

    async def _with_adapters(self, request: Generate) -> AsyncGenerator[Event, None]:
        try:
            lent = await self._adapters.lend(request.adapters)
        except EdgedError as error:
            yield Failed(request.id, error.code, error.message, error.param)
            return
        try:
            async with contextlib.aclosing(self._generate(request, lent)) as events:
                async for event in events:
                    yield event
        finally:
            lent.release()

    async def _generate(
        self, request: Generate, lent: Lent | None = None
    ) -> AsyncGenerator[Event, None]:
        arrived = time.monotonic()
        try:
            prepared, guide = await self._prepare(request, lent)
        except EdgedError as error:
            yield Failed(request.id, error.code, error.message, error.param)
            return
        generation = Generation(
            request.id,
            prepared,
            self._runner.vocab,
            self._grammars,
            guide=guide,
            arrived_s=arrived,
        )
        events: asyncio.Queue[Event] = asyncio.Queue()
        self._open[request.id] = events
        over = False
        try:
            yield protocol.Started(request.id, generation.sequence.n_prompt)
            if prepared.echo:
                yield protocol.Delta(request.id, prepared.echo, n_tokens=0)
            self._refuse_if_closing()
            self._thread.add(generation)
            self._thread.coming.discard(request.id)
            while not over:
                event = await events.get()
                over = isinstance(event, Finish | Failed)
                yield event
        except EdgedError as error:
            over = True
            yield Failed(request.id, error.code, error.message, error.param)
        finally:
            self._thread.coming.discard(request.id)
            del self._open[request.id]
            if not over:
                self._abort(request.id)

    async def _prepare(self, request: Generate, lent: Lent | None) -> tuple[Prepared, Guide | None]:
        """Read the prompt; the thread is told that a request is coming, and `_generate` adds it."""
        self._refuse_if_closing()
        self._thread.coming.add(request.id)
        try:
            prepared = await self._loop.run_in_executor(
                self._preparers, self._preparer.prepare, request
            )
            if lent is not None:
                lent.dress(prepared.sequence)
            guide = await self._compile(prepared)
            if prepared.pieces:
                assert self._encoder is not None
                prepared = await self._encoder.encoded(prepared, lambda: self._closing)
        except BaseException:  # refused, or the client is gone
            self._thread.coming.discard(request.id)
            raise
        return prepared, guide

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise ShuttingDown("the model is being stopped; try again")

    async def _compile(self, prepared: Prepared) -> Guide | None:
        """Return the grammar of the whole answer; have those ready that it may come to."""
        self._refuse_if_closing()  # no thread compiles any more
        if prepared.grammar is not None:
            return await self._grammars.guide(*prepared.grammar)
        for needed in prepared.likely:
            try:
                await self._grammars.ready(*needed)
            except InvalidRequest:
                if prepared.calls is None or prepared.calls.strict:
                    raise
        return None

    async def call(self, request: Call) -> Reply:
        """Answer a request that is no generation; see `Engine.call`."""
        if isinstance(request, Embed | Rerank):
            raise WrongModelKind.of("chat")
        return await self._loop.run_in_executor(self._preparers, self._preparer.call, request)

    def _abort(self, request_id: int) -> None:
        self._thread.abort(request_id)
        self._gone.add(request_id)
        in_step = self._thread.in_step
        self._gone &= in_step  # later steps cannot contain it
        if in_step and in_step <= self._gone:
            self._runner.interrupt()  # nobody wants this step any more

    def stats(self) -> Stats:
        """Return the counters of now."""
        scheduler, counts = self._thread.scheduler, self._thread.counts
        restoring = self._thread.restoring
        threads = self._thread.balance.threads
        return Stats(
            progress=counts.progress + (self._encoder.progress() if self._encoder else 0),
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + (restoring.n_waiting if restoring else 0),
            cells_used=scheduler.pool.cells.used,
            cells=scheduler.pool.cells.total,
            prompt_tokens=counts.prompt_tokens,
            cached_tokens=counts.cached_tokens,
            completion_tokens=counts.completion_tokens,
            step_ms=round(scheduler.pace.step_s * 1e3, 3),
            preemptions=scheduler.preemptions,
            guessed_tokens=self._thread.speculation.n_guessed,
            guessed_right=self._thread.speculation.n_right,
            restored_tokens=restoring.n_tokens if restoring else 0,
            threads=threads.settled[0],
            threads_batch=threads.settled[1],
            threads_reason=threads.reason,
            adapters=self._adapters.states(),
            pulse=self._runner.pulse,
        )

    async def close(self, *, save_s: float = 0.0) -> None:
        """Stop the thread, fail what is open, free the model; see `Engine.close`."""
        self._closing = True
        if self._running:
            self._thread.stop(save_s)
            self._adapters.close()
            self._runner.interrupt()
            await self._ended.wait()  # not join: it could not be given up
            self._running = False
            self._grammars.close()
            if self._encoder is not None:
                await self._encoder.close()
            if self._drafter is not None:
                self._drafter.close()
            self._thread.balance.close()
            self._runner.close()
        for request_id, events in self._open.items():
            error = ShuttingDown("the model was stopped before the answer was complete")
            events.put_nowait(Failed(request_id, error.code, error.message))
        for threads in (self._preparers, self._executor):
            threads.shutdown(wait=False, cancel_futures=True)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            waiting = self._open.get(event.id)
            if waiting is not None:
                waiting.put_nowait(event)

    # ── the engine thread ──

    def _run(self) -> None:
        try:
            self._thread.run()
        except BaseException as error:
            # The thread is the only owner of the context: without it the worker is of no use.
            log.exception("engine.fault", error=f"{type(error).__name__}: {error}")
            self._on_fault()
            raise
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)

    def _post(self, events: list[Event]) -> None:
        if not self._closing:  # afterwards the loop may be gone
            self._loop.call_soon_threadsafe(self._deliver, events)


def _saved_prefixes(launch: Launch, runner: Runner) -> SavedPrefixes | None:
    """Return what was saved for just this model and context, or None if nothing is to be."""
    settings = launch.llamacpp
    assert settings is not None
    cache = settings.prefix_cache
    if cache is None:
        return None
    if not cache.folder:
        cache = replace(cache, folder=str(folders.cache() / "prefixes"))
    if not cache.bytes:
        forget_all(cache, launch.model)
        return None
    try:
        digest = file_digest(Path(launch.path))
    except OSError as error:
        log.warning("prefixes.off", reason=str(error))
        return None
    key = key_of(
        digest,
        runner.facts.build,
        runner.facts.architecture,
        settings.kv_type,
        settings.flash_attention,
        settings.mmproj_id,
        runner.stretched,
        runner.forgets,
    )
    # llama.cpp writes no more of a layer than its window, though the layer may hold all: enough
    # to compute the last token once more, as the same prompt wants it, and not one before.
    window = runner.facts.window > 0
    cuttable = runner.facts.cuttable and not window
    spare = int(window and runner.facts.cuttable)
    return SavedPrefixes(cache, launch.model, key, cuttable=cuttable, spare=spare)
