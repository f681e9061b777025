"""The llama.cpp engine: asyncio on one side, one thread with the model on the other.

The loop renders, tokenizes and hands out events. The engine thread owns runner, scheduler and
every `Generation`; it takes commands from a queue between two steps and posts the events of a
step with a single call into the loop. The only things that cross otherwise are counters (written
by the thread, read by the loop) and the runner's interrupt flag.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from edged import protocol
from edged.errors import (
    EdgedError,
    InternalError,
    InvalidRequest,
    ShuttingDown,
    WrongModelKind,
)
from edged.log import get_logger
from edged.protocol import (
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
from edged.worker import output
from edged.worker.engine import BadModelError
from edged.worker.llamacpp.constrain import Grammars, GrammarStuckError, Guide
from edged.worker.llamacpp.encoding import Encoder
from edged.worker.llamacpp.generation import Generation
from edged.worker.llamacpp.library import leave_process
from edged.worker.llamacpp.prepare import Prepared, Preparer
from edged.worker.llamacpp.runner import Decoded, Runner
from edged.worker.llamacpp.sampling import NoChoiceError
from edged.worker.llamacpp.scheduler import Scheduler
from edged.worker.llamacpp.sequence import Sequence, Span
from edged.worker.llamacpp.step import Batch, Chunk, Share

log = get_logger()

_NO_CELL = "the engine found no memory cell for this request; lower `parallel` or raise `context`"
_STUCK = "the answer's grammar met a limit in the middle of it, make it simpler"
_NO_CHOICE = (
    "the model computed no token to choose from (logits that are not numbers, or every token "
    "banned); if other prompts fail as well, its file is damaged or its `kv_type` too coarse"
)


@dataclass(slots=True)
class _Counts:
    """What `stats` reports. Written by the engine thread only."""

    progress: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class _Commands:
    """The loop's wishes, taken between two steps."""

    queue: queue.SimpleQueue[Generation | int | None] = field(default_factory=queue.SimpleQueue)

    def add(self, generation: Generation) -> None:
        self.queue.put(generation)

    def abort(self, request_id: int) -> None:
        self.queue.put(request_id)

    def stop(self) -> None:
        self.queue.put(None)


class LlamaCppEngine:
    """`Engine` for one GGUF file; see `worker/engine.py` for the contract."""

    def __init__(self, on_fault: Callable[[], None] = leave_process) -> None:
        """`on_fault` is called in the engine thread when the context cannot be trusted any more."""
        self._on_fault = on_fault
        self._commands = _Commands()
        self._counts = _Counts()
        self._open: dict[int, asyncio.Queue[Event]] = {}  # by request id; the loop's
        self._gone: set[int] = set()  # aborted, perhaps still in a step; the loop's
        self._in_step: frozenset[int] = frozenset()  # the thread writes, the loop reads
        self._generations: dict[Sequence, Generation] = {}  # the thread's
        self._by_id: dict[int, Generation] = {}  # the thread's
        self._events: list[Event] = []  # the thread's, not posted yet
        self._preparers = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        # One thread loads, warms up and runs. OpenMP keeps a team of threads for each thread that
        # has decoded; with a second team there are more of them than cores, its barriers stop
        # spinning, and decoding on two cores falls to 0.57 of its speed.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
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
            self._thread, lambda: Runner(launch, output.SHOWN_TOKENS, on_progress)
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
        self._scheduler = Scheduler(
            cells=runner.cells,
            parallel=min(launch.parallel, runner.sequences - 1),  # one slot is a resident's
            batch=runner.batch,
            slots=runner.sequences,
            cuttable=runner.facts.cuttable,
        )
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
        self._thread.submit(self._run)
        self._running = True
        return Ready(
            build=runner.facts.build,
            context=self._context,
            n_vocab=runner.facts.n_vocab,
            architecture=runner.facts.architecture,
            chat_template=self._preparer.has_template,
            threads=runner.threads,
            load_s=round(time.monotonic() - started, 3),
        )

    async def generate(self, request: Generate) -> AsyncGenerator[Event, None]:
        """Yield the events of one generation; see `Engine.generate`."""
        arrived = time.monotonic()
        try:
            if self._closing:
                raise ShuttingDown("the model is being stopped; try again")
            prepared = await self._loop.run_in_executor(
                self._preparers, self._preparer.prepare, request
            )
            guide = await self._compile(prepared)
            if prepared.pieces:
                assert self._encoder is not None
                prepared = await self._encoder.encoded(prepared, lambda: self._closing)
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
            if self._closing:
                raise ShuttingDown("the model is being stopped; try again")
            self._commands.add(generation)
            while not over:
                event = await events.get()
                over = isinstance(event, Finish | Failed)
                yield event
        except EdgedError as error:
            over = True
            yield Failed(request.id, error.code, error.message, error.param)
        finally:
            del self._open[request.id]
            if not over:
                self._abort(request.id)

    async def _compile(self, prepared: Prepared) -> Guide | None:
        """Return the grammar of the whole answer; have those ready that it may come to."""
        if self._closing:  # no thread compiles any more
            raise ShuttingDown("the model is being stopped; try again")
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
        self._commands.abort(request_id)
        self._gone.add(request_id)
        in_step = self._in_step
        self._gone &= in_step  # later steps cannot contain it
        if in_step and in_step <= self._gone:
            self._runner.interrupt()  # nobody wants this step any more

    def stats(self) -> Stats:
        """Return the counters of now."""
        scheduler, counts = self._scheduler, self._counts
        return Stats(
            progress=counts.progress + (self._encoder.progress() if self._encoder else 0),
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            cells_used=scheduler.cells.used,
            cells=scheduler.cells.total,
            prompt_tokens=counts.prompt_tokens,
            cached_tokens=counts.cached_tokens,
            completion_tokens=counts.completion_tokens,
            step_ms=round(scheduler.pace.step_s * 1e3, 3),
            preemptions=scheduler.preemptions,
        )

    async def close(self) -> None:
        """Stop the thread, fail what is open, free the model."""
        self._closing = True
        if self._running:
            self._commands.stop()
            self._runner.interrupt()
            await self._ended.wait()  # not join: it could not be given up
            self._running = False
            self._grammars.close()
            if self._encoder is not None:
                await self._encoder.close()
            self._runner.close()
        for request_id, events in self._open.items():
            error = ShuttingDown("the model was stopped before the answer was complete")
            events.put_nowait(Failed(request_id, error.code, error.message))
        for threads in (self._preparers, self._thread):
            threads.shutdown(wait=False, cancel_futures=True)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            waiting = self._open.get(event.id)
            if waiting is not None:
                waiting.put_nowait(event)

    # ── the engine thread ──

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            # The thread is the only owner of the context: without it the worker is of no use.
            log.exception("engine.fault", error=f"{type(error).__name__}: {error}")
            self._on_fault()
            raise
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)

    def _work(self) -> None:
        while self._take_commands():
            batch = self._scheduler.schedule()
            for operation in batch.operations:
                if isinstance(operation, Share):
                    self._runner.share(operation.source, operation.target, operation.n)
                else:
                    self._runner.cut(operation.slot, operation.start)
            if batch.chunks:
                self._step(batch)
            else:
                self._post()

    def _take_commands(self) -> bool:
        """Take all commands, waiting for one if there is nothing else to do; False to stop."""
        commands = self._commands.queue
        while True:
            try:
                command = commands.get(block=self._scheduler.idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            if isinstance(command, Generation):
                self._by_id[command.id] = self._generations[command.sequence] = command
                self._scheduler.add(command.sequence)
            elif (generation := self._by_id.get(command)) is not None:
                self._remove(generation)

    def _remove(self, generation: Generation, *, keep: bool = True) -> None:
        self._scheduler.finish(generation.sequence, keep=keep)
        del self._generations[generation.sequence]
        del self._by_id[generation.id]

    def _step(self, batch: Batch) -> None:
        generations = [self._generations[chunk.sequence] for chunk in batch.chunks]
        self._runner.resume()
        self._in_step = frozenset(generation.id for generation in generations)
        # Not earlier: the loop would take the interpreter while this thread still needs it. Now it
        # works on the last step's events while llama.cpp computes without the interpreter.
        self._post()
        started = time.monotonic()
        if batch.chunks[0].span is None:
            outcome = self._runner.decode(
                [
                    (
                        chunk.sequence.slot or 0,
                        chunk.sequence.position(chunk.start),
                        self._tokens_of(chunk),
                        chunk.last,
                    )
                    for chunk in batch.chunks
                ]
            )
        else:
            outcome = self._look(batch.chunks[0], batch.chunks[0].span, generations[0])
        self._in_step = frozenset()
        self._counts.progress += 1
        if outcome is Decoded.INTERRUPTED:
            self._scheduler.interrupted(batch)
            return
        if outcome is Decoded.NO_ROOM:
            self._give_up(self._scheduler.no_room(batch))
            return
        self._update(batch, generations, started)
        if self._scheduler.idle:
            self._post()

    @staticmethod
    def _tokens_of(chunk: Chunk) -> list[int]:
        return chunk.sequence.tokens[chunk.start : chunk.start + chunk.n]

    def _look(self, chunk: Chunk, span: Span, generation: Generation) -> Decoded:
        """Decode a part of an image or sound."""
        sequence = chunk.sequence
        at = sequence.spans.index(span)
        piece, vectors = generation.pieces[at], generation.vectors[at]
        start = chunk.start - span.start
        return self._runner.decode_vectors(
            sequence.slot or 0,
            piece.positions(sequence.position(span.start), start, chunk.n),
            vectors[start : start + chunk.n],
            whole=span.whole,
        )

    def _update(self, batch: Batch, generations: list[Generation], started_s: float) -> None:
        """Sample where logits are due and keep the events of this step for `_post`."""
        now = time.monotonic()
        self._scheduler.computed(batch, now - started_s)
        rows = self._runner.rows() if any(chunk.last for chunk in batch.chunks) else None
        row = 0
        for chunk, generation in zip(batch.chunks, generations, strict=True):
            if not generation.started_s:
                generation.started_s = started_s
                self._counts.cached_tokens += generation.sequence.n_cached or 0
            if not chunk.last:
                self._counts.prompt_tokens += chunk.n
                continue
            if not generation.first_token_s:
                generation.first_token_s = now
                self._counts.prompt_tokens += chunk.n
            assert rows is not None
            row += 1
            try:
                over = generation.advance(rows[row - 1], self._events)
            except NoChoiceError:
                self._fail(generation, InternalError(_NO_CHOICE))
            except GrammarStuckError as error:
                self._fail(generation, InvalidRequest(f"{_STUCK}: {error}"))
            else:
                self._counts.completion_tokens += 1
                if over:
                    self._remove(generation)

    def _give_up(self, sequence: Sequence | None) -> None:
        if sequence is not None:
            self._fail(self._generations[sequence], InternalError(_NO_CELL))

    def _fail(self, generation: Generation, error: EdgedError) -> None:
        log.error("request.failed", id=generation.id, reason=error.message)
        self._remove(generation, keep=False)
        self._events.append(Failed(generation.id, error.code, error.message))

    def _post(self) -> None:
        """Hand the events so far to the loop with one call."""
        if self._events and not self._closing:  # afterwards the loop may be gone
            self._loop.call_soon_threadsafe(self._deliver, self._events)
            self._events = []
