"""The engine of embeddings and rerank models: asyncio on one side, one thread on the other.

The loop tokenizes and hands out replies. The engine thread owns runner and packing; it takes
commands from a queue between two batches and posts a call's rows with one call into the loop when
the last of them is computed. Inputs of several calls share a batch.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edged.errors import InternalError, ShuttingDown, WrongModelKind
from edged.log import get_logger
from edged.protocol import (
    AdapterFile,
    Call,
    Embed,
    Embedded,
    Event,
    Failed,
    Generate,
    Launch,
    Ranked,
    Ready,
    Render,
    Reply,
    Rerank,
    Stats,
)
from edged.worker.llamacpp.balance import Balance
from edged.worker.llamacpp.embedding_inputs import InputReader
from edged.worker.llamacpp.embedding_runner import EmbeddingRunner
from edged.worker.llamacpp.library import LOG, leave_process
from edged.worker.llamacpp.packing import Inputs, Packing

log = get_logger()

Rows = npt.NDArray[np.float32]
_Given = TypeVar("_Given")
_Found = TypeVar("_Found")


_NO_NUMBERS = (
    "the model computed values that are no numbers; if other inputs fail as well, its file is "
    "damaged or its `kv_type` too coarse"
)


class _Call(Inputs):
    """One call as the engine thread sees it; `rows` are what its inputs came to."""

    __slots__ = ("future", "gone", "n_missing", "rows")

    def __init__(self, tokens: list[list[int]], future: asyncio.Future[list[Rows]]) -> None:
        super().__init__(tokens)
        self.future = future  # the loop's
        self.gone = False  # aborted; the loop writes, the thread reads
        self.n_missing = len(tokens)
        self.rows: list[Rows] = [np.empty(0, np.float32)] * len(tokens)


class EmbeddingEngine:
    """`Engine` for one GGUF file that makes vectors or scores; see `worker/engine.py`."""

    def __init__(self, on_fault: Callable[[], None] = leave_process) -> None:
        """`on_fault` is called in the engine thread when the context cannot be trusted any more."""
        self._on_fault = on_fault
        self._commands: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._open: set[_Call] = set()  # the loop's
        self._in_batch: frozenset[_Call] = frozenset()  # the thread writes, the loop reads
        self._progress = 0  # batches; the thread's
        self._n_tokens = 0  # computed; the thread's
        self._batch_s = 0.0  # moving average; the thread's
        self._preparers = ThreadPoolExecutor(2, thread_name_prefix="prepare")
        # One thread loads and runs: OpenMP keeps a team for each thread that has decoded.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._running = False
        self._ended = asyncio.Event()  # the thread is at its end
        self._closing = False

    # ── the loop's side ──

    async def load(self, launch: Launch, progress: Callable[[float], None]) -> Ready:
        """Load the file; see `Engine.load`."""
        self._loop = loop = asyncio.get_running_loop()
        self._kind = launch.kind
        started = time.monotonic()

        def on_progress(fraction: float) -> bool:  # in the loading thread
            if not self._closing:
                loop.call_soon_threadsafe(progress, fraction)
            return not self._closing

        self._runner = runner = await loop.run_in_executor(
            self._thread, lambda: EmbeddingRunner(launch, on_progress)
        )
        self._reader = InputReader(
            runner.vocab,
            launch.context,
            width=runner.width,
            template=runner.rerank_template,
            frame=runner.frame,
        )
        self._balance = Balance(1, runner.threads)
        self._packing = Packing[_Call](tokens=runner.batch, sequences=runner.sequences)
        self._thread.submit(self._run)
        self._running = True
        return Ready(
            build=runner.build,
            context=launch.context,
            n_vocab=runner.vocab.n_tokens,
            architecture=runner.architecture,
            chat_template=False,
            threads=runner.threads,
            load_s=round(time.monotonic() - started, 3),
            buffers=LOG.take_buffers(),
        )

    def adapt(self, adapters: tuple[AdapterFile, ...]) -> None:
        """Never called with any: the plan refuses adapters of these models."""
        assert not adapters

    async def generate(self, request: Generate) -> AsyncGenerator[Event, None]:
        """Yield `Failed`: these models write nothing."""
        error = WrongModelKind.of(self._kind)
        yield Failed(request.id, error.code, error.message, error.param)

    async def call(self, request: Call) -> Reply:
        """Answer a request; see `Engine.call`."""
        if isinstance(request, Embed) and self._kind == "embeddings":
            inputs = await self._aside(self._reader.embed, request)
            width = request.dimensions or self._runner.width
            rows = [row[:width] for row in await self._compute(inputs)]
            return Embedded(request.id, await self._aside(vectors, rows), sum(map(len, inputs)))
        if isinstance(request, Rerank) and self._kind == "rerank":
            inputs = await self._aside(self._reader.rerank, request)
            rows = await self._compute(inputs)
            ranks = scores(rows, probabilities=self._runner.gives_probabilities)
            return Ranked(request.id, ranks, sum(map(len, inputs)))
        if isinstance(request, Embed | Rerank | Render):
            raise WrongModelKind.of(self._kind)
        return await self._aside(self._reader.call, request)

    async def _aside(self, work: Callable[[_Given], _Found], given: _Given) -> _Found:
        return await self._loop.run_in_executor(self._preparers, work, given)

    async def _compute(self, inputs: list[list[int]]) -> list[Rows]:
        """Return the rows of the inputs, in their order; cancelling it aborts."""
        if self._closing:
            raise ShuttingDown("the model is being stopped; try again")
        call = _Call(inputs, self._loop.create_future())
        self._open.add(call)
        self._commands.put(call)
        try:
            return await call.future
        finally:
            self._open.discard(call)
            if call.future.cancelled():
                self._abort(call)

    def _abort(self, call: _Call) -> None:
        call.gone = True
        self._commands.put(call)
        in_batch = self._in_batch
        if in_batch and all(each.gone for each in in_batch):
            self._runner.interrupt()  # nobody wants this batch any more

    def stats(self) -> Stats:
        """Return the counters of now."""
        running = len(self._in_batch)
        threads = self._balance.threads
        return Stats(
            progress=self._progress,
            running=running,
            waiting=max(0, len(self._open) - running),
            cells_used=0,
            cells=0,
            prompt_tokens=self._n_tokens,
            cached_tokens=0,
            completion_tokens=0,
            step_ms=round(self._batch_s * 1e3, 3),
            threads=threads.settled[1],
            threads_batch=threads.settled[1],
            threads_reason=threads.reason,
            pulse=self._runner.pulse,
        )

    async def close(self, *, save_s: float = 0.0) -> None:  # noqa: ARG002 - nothing to save
        """Stop the thread, fail what is open, free the model."""
        self._closing = True
        if self._running:
            self._commands.put(None)
            self._runner.interrupt()
            await self._ended.wait()  # not join: it could not be given up
            self._running = False
            self._balance.close()
            self._runner.close()
        for call in self._open:
            if not call.future.done():
                error = ShuttingDown("the model was stopped before the answer was complete")
                call.future.set_exception(error)
        for threads in (self._preparers, self._thread):
            threads.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _deliver(calls: list[_Call]) -> None:
        for call in calls:
            if not call.future.done():  # else aborted meanwhile
                call.future.set_result(call.rows)

    # ── the engine thread ──

    def _run(self) -> None:
        try:
            while self._take_commands():
                self._step()
        except BaseException as error:
            # The thread is the only owner of the context: without it the worker is of no use.
            log.exception("engine.fault", error=f"{type(error).__name__}: {error}")
            self._on_fault()
            raise
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)

    def _take_commands(self) -> bool:
        """Take all commands, waiting for one if there is nothing else to do; False to stop."""
        while True:
            try:
                call = self._commands.get(block=not self._packing)
            except queue.Empty:
                return True
            if call is None:
                return False
            if call.gone:  # said before it was taken, or once more afterwards
                self._packing.drop(call)
            else:
                self._packing.add(call)

    def _step(self) -> None:
        batch = self._packing.take()
        if not batch:
            return
        self._runner.resume()
        if self._closing:  # its interrupt may just have been taken back
            return
        inputs = [call.tokens[i] for call, i in batch]
        self._in_batch = frozenset(call for call, _ in batch)
        started = time.monotonic()
        n_tokens = sum(map(len, inputs))
        self._runner.threads = self._balance.before(n_tokens, started, decoding=False)[1]
        rows = self._runner.compute(inputs)
        self._progress += 1
        self._in_batch = frozenset()
        if rows is None:
            self._packing.put_back([(call, i) for call, i in batch if not call.gone])
            return
        now = time.monotonic()
        self._batch_s += 0.2 * (now - started - self._batch_s)
        self._balance.after(n_tokens, started, now, decoding=False)
        done = []
        for (call, i), row in zip(batch, rows, strict=True):
            self._n_tokens += len(call.tokens[i])
            call.rows[i] = row
            call.n_missing -= 1
            if not call.n_missing:
                done.append(call)
        if done and not self._closing:  # afterwards the loop may be gone
            self._loop.call_soon_threadsafe(self._deliver, done)


def vectors(rows: Sequence[Rows]) -> list[bytes]:
    """Return each row at length 1 (Euclid) as little-endian float32; zeros stay zeros.

    Raises InternalError for values that are no numbers.
    """
    whole = _stacked(rows)
    lengths = np.sqrt(np.square(whole, dtype=np.float64).sum(axis=1, keepdims=True))
    whole = np.divide(whole, lengths, where=lengths > 0, out=whole.astype(np.float64))
    return [row.tobytes() for row in whole.astype("<f4")]


def scores(rows: Sequence[Rows], *, probabilities: bool) -> list[float]:
    """Return the score of each row, 0 to 1: a logit through the logistic function.

    Cohere, Jina and text-embeddings-inference do the same; llama-server returns the logit.
    Raises InternalError for values that are no numbers.
    """
    first = _stacked(rows)[:, 0].astype(np.float64)
    if not probabilities:
        # the half of the hyperbolic tangent's: no overflow at either end
        first = 0.5 * (1.0 + np.tanh(0.5 * first))
    return [float(value) for value in first]


def _stacked(rows: Sequence[Rows]) -> Rows:
    whole = np.stack(rows)
    if not np.isfinite(whole).all():
        raise InternalError(_NO_NUMBERS)
    return whole
