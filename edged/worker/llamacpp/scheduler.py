"""Who computes what in the next step, and which cells it may use.

Pure: no native call, no clock, no thread. The engine thread calls `schedule`, carries out the
operations and the batch, and reports with `computed`, `no_room` or `interrupted`. Invariants, held
by the property tests:

* every used cell belongs to a running sequence or to a resident one;
* every admitted sequence ends once, through `finish` or `abort`, and its tokens never change order;
* a step has sequences of one set of adapters (`turns.py`);
* the oldest running sequence makes progress in every step of its set's turns, or in every second
  one while images and tokens take turns, and no set waits for more than one turn of each other:
  nothing can deadlock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from edged.worker.llamacpp import checkpoints
from edged.worker.llamacpp.pace import TARGET_S, TOGETHER_S, Pace
from edged.worker.llamacpp.pool import Pool
from edged.worker.llamacpp.sequence import Sequence, Span
from edged.worker.llamacpp.step import Batch, Chunk
from edged.worker.llamacpp.turns import Turn, Turns

_PATIENCE = 8  # steps without budget after which a long prefill goes before shorter ones


class Scheduler:
    """Sequences, slots and cells of one context. One owner: the engine thread."""

    def __init__(
        self,
        *,
        cells: int,
        parallel: int,
        batch: int,
        slots: int,
        cuttable: bool = True,
        window: int = 0,
        keeps_checkpoints: bool = False,
    ) -> None:
        """`slots` are more than `parallel`, so that residents may stay; the rest: see `Pool`."""
        assert slots > parallel
        self.pool = Pool(
            cells=cells,
            slots=slots,
            cuttable=cuttable,
            window=window,
            keeps_checkpoints=keeps_checkpoints or not cuttable,
        )
        self.pace = Pace()
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival
        self.preemptions = 0
        self._parallel = parallel
        self._batch = batch
        # While llama.cpp finds no room for what the books allow: smaller batches, no admission.
        self._limit = batch
        self._squeezed = False
        self._turns = Turns()
        self._arrivals = 0

    @property
    def idle(self) -> bool:
        """Nothing to compute and nothing to give back."""
        return not (self.waiting or self.running or self.pool.operations)

    # ── what comes in and goes out ──

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence; it is admitted in order of arrival."""
        assert sequence.context <= self.pool.cells.total
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Take a sequence off that has ended or is not wanted any more.

        Its prefix may stay, unless `keep` is False: what was computed is of no use.
        """
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self._dismiss_followers(sequence)
        sequence.donor = None
        self.pool.retire(sequence, keep=keep)

    # ── the step ──

    def next_up(self) -> list[Sequence]:
        """Return the running sequences that the next step is for, unless newcomers are first."""
        turns = self._turns.of(s.adapters for s in self.running)
        return [s for s in self.running if s.adapters == turns[0].adapters]

    def schedule(self) -> Batch:
        """Return the next step; without chunks there is nothing to decode (operations may be)."""
        self._admit()
        self._lend()
        batch = Batch()
        for turn in tuple(self._turns.of(s.adapters for s in self.running)):
            self._plan(batch, turn)
            while not batch.chunks and self.running[0].adapters == turn.adapters:
                # Prefills block each other: the youngest gives way until the oldest can go on.
                if len(self.running) > 1:
                    self._preempt(self.running[-1])
                self._lend()
                self._plan(batch, turn)
            if batch.chunks:
                self._turns.took(turn)
                break
        batch.operations = self.pool.take_operations()
        return batch

    def _plan(self, batch: Batch, turn: Turn) -> None:
        """Fill the batch with tokens, or with a part of an image or sound; these take turns."""
        here = [s for s in self.running if s.adapters == turn.adapters]
        if not turn.tokens_next:
            self._plan_span(batch, here)
        turn.tokens_next = bool(batch.chunks)
        if not batch.chunks:
            self._plan_decodes(batch, here)
            self._plan_prefills(batch, here)
        if not batch.chunks:
            self._plan_span(batch, here)

    def _plan_decodes(self, batch: Batch, here: list[Sequence]) -> None:
        decoding = [s for s in here if s.decoding and s.donor is None]
        while decoding and not self.pool.make_room(len(decoding)):
            self._preempt(self.running[-1])
            decoding = [s for s in decoding if s.slot is not None]
        decoding = decoding[: self._limit]
        n_guesses = sum(len(s.guesses) for s in decoding)
        n = len(decoding) + n_guesses
        guess = n_guesses and n <= self._limit and self.pool.make_room(n)
        for sequence in decoding:
            self._add_chunk(batch, sequence, 1, guesses=tuple(sequence.guesses) if guess else ())
            sequence.guesses = []

    def _plan_prefills(self, batch: Batch, here: list[Sequence]) -> None:
        prefilling = [s for s in here if not s.decoding and s.donor is None and s.slot is not None]
        budget = self._limit - sum(chunk.n_cells for chunk in batch.chunks)
        if streams := self._streams():  # those with other adapters wait for this step, too
            # A donor has its first token while its followers only begin: they came together, and
            # one longer step gives all of them theirs.
            together = {s.arrival for s in streams} <= {s.followed for s in prefilling}
            target_s = TOGETHER_S if together else TARGET_S
            budget = min(budget, self.pace.prompt_tokens(target_s))
        prefilling.sort(key=lambda s: (s.passed_over < _PATIENCE, s.pending))
        for sequence in prefilling:
            n = min(sequence.pending, budget, checkpoints.until_stop(sequence))
            if sequence.spans:
                span, run = sequence.ahead()
                if span is not None:
                    continue
                n = min(n, run)
            if n > 0 and not self.pool.make_room(n):
                n = min(n, self.pool.cells.free)
            if n <= 0:
                sequence.passed_over += 1
                continue
            sequence.passed_over = sequence.followed = 0  # together for one step only
            self._add_chunk(batch, sequence, n)
            budget -= n

    def _streams(self) -> list[Sequence]:
        return [s for s in self.running if s.decoding and s.donor is None]

    def _plan_span(self, batch: Batch, here: list[Sequence]) -> None:
        """Take the next part of one image or sound; beside streams as much as they can bear."""
        found = [
            (s, *ahead)
            for s in here
            if s.spans and s.donor is None and (ahead := s.ahead())[0] is not None
        ]
        found.sort(key=lambda each: (each[0].passed_over < _PATIENCE, each[0].pending))
        budget = self._limit
        if found and self._streams():
            budget = min(budget, self.pace.prompt_tokens())
        for sequence, span, left in found:
            assert span is not None
            if sequence.slot is None:
                continue  # it just gave way
            if batch.chunks:  # taken by a smaller one, and who is in it must not give way
                sequence.passed_over += 1
                continue
            n = left if span.whole else min(left, budget)
            while span.whole and sequence is self.running[0] and len(self.running) > 1:
                if self.pool.make_room(n):
                    break
                self._preempt(self.running[-1])
            if not self.pool.make_room(n) and not span.whole:
                n = min(n, self.pool.cells.free)
            if not 0 < n <= self.pool.cells.free:
                sequence.passed_over += 1
                continue
            sequence.passed_over = 0
            self._add_chunk(batch, sequence, n, span)

    def _add_chunk(
        self,
        batch: Batch,
        sequence: Sequence,
        n: int,
        span: Span | None = None,
        guesses: tuple[int, ...] = (),
    ) -> None:
        start = sequence.n_computed
        last = start + n == len(sequence.tokens)
        chunk = Chunk(sequence, start, n, last, span, guesses)
        self.pool.grow(sequence, chunk.n_cells)
        batch.chunks.append(chunk)

    # ── what the step came to ──

    def computed(self, batch: Batch, seconds: float) -> None:
        """Count a batch that was decoded; the engine then appends the sampled tokens.

        Where there were guesses it says with `settle` how many of them were right.
        """
        decodes = prompt_tokens = 0
        for chunk in batch.chunks:
            chunk.sequence.n_computed += chunk.n
            self.pool.passed(chunk.sequence)
            if chunk.goes_on:
                decodes += 1
            else:
                prompt_tokens += chunk.n
        self._limit = self._batch
        self._squeezed = False
        self._turns.spent(seconds)
        self.pace.observe(decodes=decodes, prompt_tokens=prompt_tokens, seconds=seconds)

    def settle(self, chunk: Chunk, n_right: int) -> None:
        """Keep the first `n_right` guesses of a computed chunk, take the others out of memory."""
        sequence, wrong = chunk.sequence, len(chunk.guesses) - n_right
        sequence.n_computed += n_right
        if wrong:
            self.pool.shrink(sequence, wrong)
            self.pool.cut(sequence)

    def no_room(self, batch: Batch) -> Sequence | None:
        """Give something up, as llama.cpp found no cells although the books had some.

        Returns a sequence that cannot go on even alone and token by token; the caller fails it.
        """
        self._take_back(batch)
        self._squeezed = True
        if self.pool.evict_oldest():
            pass
        elif len(self.running) > 1:
            self._preempt(self.running[-1])
        elif self._limit > 1:
            self._limit //= 2
        else:
            return self.running[0]
        return None

    def interrupted(self, batch: Batch) -> None:
        """Undo a batch that was broken off: what lies in memory of it is not certain."""
        self._take_back(batch)
        if not self.pool.cuttable:
            # llama.cpp lays the states of a batch side by side and moves those that lie between:
            # of anybody, a resident too. A step that is broken off leaves some where they were.
            while self.running:
                self._preempt(self.running[-1])
            while self.pool.evict_oldest():
                pass
            return
        for chunk in reversed(batch.chunks):
            if self.pool.cut_back(chunk.sequence):
                self.pool.cut(chunk.sequence)
            else:
                self._preempt(chunk.sequence)

    def watch(self, first_position: Callable[[int], int]) -> None:
        """After every decode: `first_position` of a slot is the first that it still holds."""
        self.pool.watch(self.running, first_position)

    def _take_back(self, batch: Batch) -> None:
        for chunk in batch.chunks:
            self.pool.shrink(chunk.sequence, chunk.n_cells)

    # ── admission ──

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._parallel:
            sequence = self.waiting[0]
            if not self._fits(sequence):
                return
            self.waiting.popleft()
            self._run(sequence)

    def _fits(self, sequence: Sequence) -> bool:
        """Tell if its tokens find room beside the prefills under way and a token of everyone."""
        if not self.running:
            return True
        if self._squeezed:
            return False
        source, n, _, _ = self.pool.choose(sequence)
        shared = source.cells[:n] if source is not None else []
        promised = sum(s.pending for s in self.running)
        cells = self.pool.cells
        available = cells.free + cells.evictable - cells.unheld(shared)
        return sequence.pending - n + promised + 1 <= available

    def _run(self, sequence: Sequence) -> None:
        source, n, wait_for, agreed = self.pool.choose(sequence)
        if self.pool.place(sequence, source, n):
            source = wait_for = None
        self.running.append(sequence)
        self.running.sort(key=lambda s: s.arrival)
        if wait_for is not None:
            self.pool.await_prefix(sequence, *wait_for)
        elif source is not None:
            self.pool.share(source, sequence, n)
        if sequence.donor is None and sequence.n_cached is None:
            sequence.n_cached = sequence.n_computed
        start = sequence.n_borrowed if sequence.donor else sequence.n_computed
        self.pool.announce(sequence, start, agreed)

    def _lend(self) -> None:
        """Give those who wait for another one's prefix what it has computed by now."""
        for sequence in self.running:
            donor = sequence.donor
            if donor is not None and donor.n_computed >= sequence.n_borrowed:
                self.pool.lend(sequence)

    def _dismiss_followers(self, donor: Sequence) -> None:
        """`donor` computes no further: those who wait for it take what there is, or compute."""
        for sequence in self.running:
            if sequence.donor is donor:
                self.pool.lend(sequence)

    # ── giving way ──

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's cells; it keeps its tokens and is computed again later."""
        self.running.remove(sequence)
        self._dismiss_followers(sequence)
        self.pool.drop(sequence)
        sequence.donor = None
        sequence.n_computed = 0
        sequence.passed_over = 0
        self.preemptions += 1
        at = sum(s.arrival < sequence.arrival for s in self.waiting)
        self.waiting.insert(at, sequence)
