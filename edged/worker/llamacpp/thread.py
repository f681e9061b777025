"""The thread that owns the model: commands in, schedule → decode → update, events out.

It owns runner, scheduler and every `Generation`. The loop's side (`engine.py`) reaches it through
`add`, `abort` and `stop`, which it takes between two steps, and reads `counts` and `in_step`; the
events of a step leave in one piece, while the next one is computed.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from edged.errors import EdgedError, InternalError, InvalidRequest
from edged.log import get_logger
from edged.protocol import Event, Failed
from edged.worker.llamacpp.balance import Balance
from edged.worker.llamacpp.constrain import GrammarStuckError
from edged.worker.llamacpp.generation import Generation
from edged.worker.llamacpp.restoring import Restoring, State
from edged.worker.llamacpp.runner import Decoded, Rows, Runner
from edged.worker.llamacpp.sampling import NoChoiceError
from edged.worker.llamacpp.saved import SavedPrefixes
from edged.worker.llamacpp.saving import save
from edged.worker.llamacpp.scheduler import Scheduler
from edged.worker.llamacpp.sequence import Sequence, Span
from edged.worker.llamacpp.speculation import Speculation
from edged.worker.llamacpp.step import Batch, Chunk, Operation, Share

log = get_logger()

_NO_CELL = "the engine found no memory cell for this request; lower `parallel` or raise `context`"
_STUCK = "the answer's grammar met a limit in the middle of it, make it simpler"
_NO_CHOICE = (
    "the model computed no token to choose from (logits that are not numbers, or every token "
    "banned); if other prompts fail as well, its file is damaged or its `kv_type` too coarse"
)
# Requests that come together share their first steps: an idle thread waits so long for those that
# are being read. The last of eight short prompts had its first token after 1.5 s instead of 0.9 s
# where the first two set out alone, and all of them had to be computed in pieces beside those.
_GATHER_S = 0.01


@dataclass(slots=True)
class Counts:
    """What `stats` reports. Written by the thread only."""

    progress: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class EngineThread:
    """`run` is the thread; everything else of this class is called in it, but where it says."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        speculation: Speculation,
        post: Callable[[list[Event]], None],
        saved: SavedPrefixes | None = None,
    ) -> None:
        """`post` hands events to the loop; it is called in the thread."""
        self.speculation = speculation
        self.runner = runner
        self.scheduler = scheduler
        self.counts = Counts()
        self.balance = Balance(*runner.threads)
        self.coming: set[int] = set()  # requests whose prompts are being read; the loop's
        self.in_step: frozenset[int] = frozenset()  # requests in the running decode
        self._post_events = post
        self._commands: queue.SimpleQueue[Generation | State | Callable[[], None] | int | None] = (
            queue.SimpleQueue()
        )
        self._generations: dict[Sequence, Generation] = {}
        self._by_id: dict[int, Generation] = {}
        self._events: list[Event] = []  # not posted yet
        self._saved = saved
        self._save_s = 0.0  # written by `stop`
        self.restoring: Restoring | None = None
        if saved is not None:
            self.restoring = Restoring(
                saved,
                runner,
                scheduler.pool,
                carry_out=self._carry_out,
                arrived=self._commands.put,
            )

    # ── from the loop ──

    def add(self, generation: Generation) -> None:
        """Let a generation begin."""
        self._commands.put(generation)

    def abort(self, request_id: int) -> None:
        """End a generation without another event; an unknown or ended one is no error."""
        self._commands.put(request_id)

    def between_steps(self, work: Callable[[], None]) -> None:
        """Have `work` done in the thread, after what was commanded before; it must not raise."""
        self._commands.put(work)

    def stop(self, save_s: float = 0.0) -> None:
        """Let `run` return after the present step, and after saving prefixes for so long."""
        self._save_s = save_s
        self._commands.put(None)

    @property
    def at_rest(self) -> bool:
        """Nothing is open and nothing to be done."""
        return self._commands.empty() and self.scheduler.idle and not self._generations

    # ── the thread ──

    def run(self) -> None:
        """Work until `stop`. Whatever it raises, the context is of no use any more."""
        while self._take_commands():
            self.speculation.guess(self.scheduler.next_up())
            batch = self.scheduler.schedule()
            self._carry_out(batch.operations)
            if batch.chunks:
                self._step(batch)
            else:
                self._post()
        self._leave()

    def _leave(self) -> None:
        """Save the hottest prefixes, those of open requests too, for the worker that follows."""
        if self.restoring is not None:
            self.restoring.close()
        if self._saved is None or self._save_s <= 0:
            return
        for generation in list(self._generations.values()):
            self._remove(generation)
        self._carry_out(self.scheduler.pool.take_operations())
        save(self.scheduler.pool, self.runner, self._saved, self._save_s)

    def _carry_out(self, operations: list[Operation]) -> None:
        for operation in operations:
            if isinstance(operation, Share):
                self.runner.share(operation.source, operation.target, operation.n)
            else:
                self.runner.cut(operation.slot, operation.start)

    def _take_commands(self) -> bool:
        """Take all commands, waiting for one if there is nothing else to do; False to stop."""
        gather_by_s = math.inf if self.scheduler.idle else 0.0
        while True:
            try:
                if self.scheduler.idle:
                    command = self._commands.get()
                else:
                    gather_by_s = min(gather_by_s, time.monotonic() + _GATHER_S)
                    command = self._await_command(gather_by_s)
            except queue.Empty:
                return True
            if command is None:
                return False
            if isinstance(command, Generation):
                self._by_id[command.id] = self._generations[command.sequence] = command
                if self.restoring is None or not self.restoring.hold(command.sequence):
                    self.scheduler.add(command.sequence)
            elif isinstance(command, State):
                self._restore(command)
            elif callable(command):
                command()
            elif (generation := self._by_id.get(command)) is not None:
                self._remove(generation)

    def _await_command(self, until_s: float) -> Any:
        """Return the next command; raises queue.Empty when none is to be waited for."""
        try:
            return self._commands.get_nowait()
        except queue.Empty:
            left_s = until_s - time.monotonic()
            if left_s <= 0 or not self.coming:
                raise
        return self._commands.get(timeout=left_s)

    def _restore(self, state: State) -> None:
        assert self.restoring is not None
        for sequence in self.restoring.restore(state):
            self.scheduler.add(sequence)
        self.counts.progress += 1

    def _remove(self, generation: Generation, *, keep: bool = True) -> None:
        if self.restoring is None or not self.restoring.drop(generation.sequence):
            self.scheduler.finish(generation.sequence, keep=keep)
        self.speculation.forget(generation.sequence)
        del self._generations[generation.sequence]
        del self._by_id[generation.id]

    def _step(self, batch: Batch) -> None:
        generations = [self._generations[chunk.sequence] for chunk in batch.chunks]
        self.runner.resume()
        self.in_step = frozenset(generation.id for generation in generations)
        # Not earlier: the loop would take the interpreter while this thread still needs it. Now it
        # works on the last step's events while llama.cpp computes without the interpreter.
        self._post()
        started = time.monotonic()
        self.runner.use(batch.chunks[0].sequence.adapters)
        self._share_box(batch, started)
        if batch.chunks[0].span is None:
            outcome = self.runner.decode(
                [
                    (
                        chunk.slot,
                        chunk.sequence.position(chunk.start),
                        self._tokens_of(chunk),
                        1 + len(chunk.guesses) if chunk.last else 0,
                    )
                    for chunk in batch.chunks
                ]
            )
        else:
            outcome = self._look(batch.chunks[0], batch.chunks[0].span, generations[0])
        self.in_step = frozenset()
        self.counts.progress += 1
        self.scheduler.watch(self.runner.first_position)
        if outcome is Decoded.INTERRUPTED:
            self.scheduler.interrupted(batch)
            return
        if outcome is Decoded.NO_ROOM:
            self._give_up(self.scheduler.no_room(batch))
            return
        self._update(batch, generations, started)
        if self.scheduler.idle:
            self._post()

    @staticmethod
    def _tokens_of(chunk: Chunk) -> list[int]:
        return [*chunk.sequence.tokens[chunk.start : chunk.start + chunk.n], *chunk.guesses]

    def _look(self, chunk: Chunk, span: Span, generation: Generation) -> Decoded:
        """Decode a part of an image or sound."""
        sequence = chunk.sequence
        at = sequence.spans.index(span)
        piece, vectors = generation.pieces[at], generation.vectors[at]
        start = chunk.start - span.start
        return self.runner.decode_vectors(
            chunk.slot,
            piece.positions(sequence.position(span.start), start, chunk.n),
            vectors[start : start + chunk.n],
            whole=span.whole,
        )

    def _update(self, batch: Batch, generations: list[Generation], started_s: float) -> None:
        """Sample where logits are due and keep the events of this step for `_post`."""
        now = time.monotonic()
        self.scheduler.computed(batch, now - started_s)
        self.speculation.observe(batch, now - started_s)
        self.balance.after(batch.n_tokens, started_s, now, decoding=batch.decoding)
        rows = self.runner.rows() if any(chunk.last for chunk in batch.chunks) else None
        row = 0
        for chunk, generation in zip(batch.chunks, generations, strict=True):
            if not generation.started_s:
                generation.started_s = started_s
                self.counts.cached_tokens += generation.sequence.n_cached or 0
            if not chunk.last:
                self.counts.prompt_tokens += chunk.n
                continue
            if not generation.first_token_s:
                generation.first_token_s = now
                self.counts.prompt_tokens += chunk.n
            assert rows is not None
            end = row + 1 + len(chunk.guesses)
            self._advance(chunk, generation, rows[row:end])
            row = end

    def _share_box(self, batch: Batch, now_s: float) -> None:
        threads = self.balance.before(
            batch.n_tokens, now_s, decoding=batch.decoding, urgent=batch.streaming
        )
        if threads != self.runner.threads:
            self.runner.threads = threads
            self.speculation.use_threads(threads)

    def _advance(self, chunk: Chunk, generation: Generation, rows: Rows) -> None:
        """Sample the token after each computed one, as long as the next one was guessed right."""
        n_right, over = 0, False
        try:
            for guess, row in zip_longest(chunk.guesses, rows):
                over = generation.advance(row, self._events)
                self.counts.completion_tokens += 1
                if over or generation.sequence.tokens[-1] != guess:
                    break
                n_right += 1
        except NoChoiceError:
            self._fail(generation, InternalError(_NO_CHOICE))
            return
        except GrammarStuckError as error:
            self._fail(generation, InvalidRequest(f"{_STUCK}: {error}"))
            return
        if chunk.guesses:
            self.scheduler.settle(chunk, n_right)
            self.speculation.learn(chunk, n_right)
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
        if self._events:
            self._post_events(self._events)
            self._events = []
