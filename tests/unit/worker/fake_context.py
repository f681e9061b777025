"""A `llama_context` in Python: slots, shared cells and a deterministic "model"."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from edged.worker.llamacpp.scheduler import Scheduler
from edged.worker.llamacpp.sequence import Adapters, Sequence, Span
from edged.worker.llamacpp.step import Batch, Chunk, Operation, Share
from edged.worker.llamacpp.turns import TURN_S

END = 0
N_VOCAB = 12
STEP_S = 0.01
IMAGE = 1000  # tokens from here on stand for places of images


def next_token(tokens: list[int]) -> int:
    """What the model says after `tokens`: depends on all of them."""
    state = 7
    for token in tokens:
        state = (state * 31 + token + 1) % 1_000_003
    return state % N_VOCAB


def expected_answer(prompt: list[int], context: int, max_tokens: int | None) -> list[int]:
    tokens = list(prompt)
    while True:
        tokens.append(next_token(tokens))
        n = len(tokens) - len(prompt)
        if tokens[-1] == END or n == max_tokens or len(tokens) >= context:
            return tokens[len(prompt) :]


@dataclass(eq=False)
class Cell:
    token: int
    group: str
    position: int


@dataclass
class FakeContext:
    cells: int
    cuttable: bool = True
    window: int = 0
    slots: dict[int, list[Cell]] = field(default_factory=dict)
    lost: dict[int, int] = field(default_factory=dict)  # positions that the window forgot

    def after(self, operations: list[Operation]) -> FakeContext:
        """Return what this context will be once the operations are carried out."""
        future = FakeContext(
            self.cells, self.cuttable, self.window, dict(self.slots), dict(self.lost)
        )
        future.apply(Batch(operations))
        return future

    @property
    def used(self) -> int:
        return len({id(cell) for cells in self.slots.values() for cell in cells})

    def apply(self, batch: Batch) -> None:
        for operation in batch.operations:
            if isinstance(operation, Share):
                assert not self.slots.get(operation.target)
                source = self.slots[operation.source]
                # The end of an image may be positions behind its last cell: no bound from above.
                assert source
                assert operation.n > 0
                if not self.cuttable:
                    assert all(c.position < operation.n for c in source), "not where it stands"
                self.lost[operation.target] = self.lost.get(operation.source, 0)
                self.slots[operation.target] = [c for c in source if c.position < operation.n]
            else:
                assert self.cuttable or operation.start == 0
                held = self.slots.get(operation.slot, [])
                if operation.start == 0:
                    self.lost[operation.slot] = 0
                self.slots[operation.slot] = [c for c in held if c.position < operation.start]

    def decode(self, batch: Batch) -> bool:
        """Write the chunks' cells; False when there are not enough."""
        if self.used + sum(chunk.n_cells for chunk in batch.chunks) > self.cells:
            return False
        self.forget()
        assert len({chunk.sequence.adapters for chunk in batch.chunks}) == 1
        for chunk in batch.chunks:
            slot = chunk.sequence.slot
            assert slot is not None
            held = self.slots.setdefault(slot, [])
            assert len(held) == chunk.start, "positions without gaps"
            tokens = chunk.sequence.tokens[chunk.start : chunk.start + chunk.n]
            assert len(tokens) == chunk.n > 0
            positions = self._positions(batch, chunk)
            group = chunk.sequence.group
            forgotten = self.lost.get(slot, 0)
            assert forgotten <= max(0, positions[0] - self.window + 1), "forgotten, and wanted"
            held += [Cell(t, group, p) for t, p in zip(tokens, positions, strict=True)]
            assert self.cuttable or not chunk.guesses
            behind = positions[-1] + 1
            held += [Cell(t, group, behind + i) for i, t in enumerate(chunk.guesses)]
        return True

    def forget(self) -> None:
        """Lose what no window reaches any more, of every second slot: new cells take its place."""
        for slot, held in self.slots.items():
            if self.window and held and (slot + len(held)) % 2:
                # The parts of one image may have one position: the next may be no further.
                following = held[-1].position + (held[-1].token < IMAGE)
                behind = following + 1 - self.window
                self.lost[slot] = max(self.lost.get(slot, 0), behind)

    def break_off(self, batch: Batch) -> None:
        """Leave a decode in the middle: some of what it wrote remains, and is not right."""
        n_before = {slot: len(held) for slot, held in self.slots.items()}
        assert self.decode(batch), "the books promised room"
        for slot, held in self.slots.items():
            # All states are moved about, so any may be half somewhere else; cells are not.
            n = n_before.get(slot, 0) if self.cuttable else 0
            spoiled = [replace(cell, token=-1) for cell in held[n:]]
            held[n:] = spoiled[: len(spoiled) // (1 + slot % 2)] if self.cuttable else spoiled

    @staticmethod
    def _positions(batch: Batch, chunk: Chunk) -> list[int]:
        sequence, span = chunk.sequence, chunk.span
        first = sequence.position(chunk.start)
        if span is None:
            assert all(t < IMAGE for t in sequence.tokens[chunk.start : chunk.start + chunk.n])
            return [first + i for i in range(chunk.n)]
        assert len(batch.chunks) == 1, "an image is alone in its batch"
        assert span.start <= chunk.start
        assert chunk.start + chunk.n <= span.end
        assert not chunk.last
        if span.whole:
            assert (chunk.start, chunk.n) == (span.start, span.n)
        if span.n_positions == span.n:
            return [first + i for i in range(chunk.n)]
        return [sequence.position(span.start)] * chunk.n

    def content(self, sequence: Sequence) -> list[int]:
        assert sequence.slot is not None
        cells = self.slots.get(sequence.slot, [])
        assert all(cell.group == sequence.group for cell in cells), "a foreign group's cells"
        return [cell.token for cell in cells]


@dataclass
class Snapshot:
    """What a file keeps of a resident."""

    group: str
    tokens: list[int]
    spans: tuple[Span, ...]
    state: list[Cell]


@dataclass
class Driver:
    """The engine thread's part: runs the scheduler against a `FakeContext`."""

    scheduler: Scheduler
    context: FakeContext
    answers: dict[Sequence, list[int]] = field(default_factory=dict)
    ended: dict[Sequence, str] = field(default_factory=dict)
    prompts: dict[Sequence, list[int]] = field(default_factory=dict)
    oldest: Sequence | None = None
    n_passed_over: int = 0  # steps since its set had one
    snapshots: list[Snapshot] = field(default_factory=list)
    restored: set[Sequence] = field(default_factory=set)

    def save(self, resident: Sequence) -> None:
        """Keep a resident's state."""
        self.context.apply(Batch(self.scheduler.pool.take_operations()))
        spans = tuple(s for s in resident.spans if s.end <= resident.n_computed)
        assert self.context.content(resident) == resident.tokens
        state = [replace(cell) for cell in self.context.slots[resident.slot or 0]]
        self.snapshots.append(Snapshot(resident.group, list(resident.tokens), spans, state))

    def restore(self, snapshot: Snapshot) -> Sequence | None:
        """Make a resident of a state that was kept, if there is room."""
        pool = self.scheduler.pool
        resident = pool.adopt(snapshot.group, snapshot.tokens, snapshot.spans, 1)
        self.context.apply(Batch(pool.take_operations()))
        if resident is not None:
            assert resident.slot is not None
            assert not self.context.slots.get(resident.slot)
            assert self.context.used + len(snapshot.state) <= self.context.cells
            self.context.slots[resident.slot] = [replace(cell) for cell in snapshot.state]
            self.restored.add(resident)
        return resident

    def add(
        self,
        prompt: list[int],
        context: int,
        max_tokens: int | None,
        group: str,
        spans: tuple[Span, ...] = (),
        *,
        border: int = 0,
        adapters: Adapters = (),
    ) -> Sequence:
        sequence = Sequence(
            list(prompt),
            context=context,
            max_tokens=max_tokens,
            group=f"{group} {adapters}",
            spans=spans,
            border=border,
        )
        sequence.adapters = adapters  # named in the group: a resident has no others
        self.scheduler.add(sequence)
        self.answers[sequence] = []
        self.prompts[sequence] = prompt
        return sequence

    def abort(self, sequence: Sequence) -> None:
        assert sequence not in self.ended
        self.ended[sequence] = "aborted"
        self.scheduler.finish(sequence)

    def step(self, outcome: str = "done") -> Batch:
        batch = self.scheduler.schedule()
        self.context.apply(batch)
        if not batch.chunks:
            return batch
        for chunk in batch.chunks:
            slot_content = self.context.content(chunk.sequence)
            assert slot_content == chunk.sequence.tokens[: chunk.start]
        if outcome != "done":
            self.n_passed_over = 0  # it may have to come again
        if outcome == "interrupted":
            self.context.break_off(batch)
            self.scheduler.watch(lambda slot: self.context.lost.get(slot, 0))
            self.scheduler.interrupted(batch)
            return batch
        if outcome == "no_room":
            lost = self.scheduler.no_room(batch)
            if lost is not None:
                assert lost not in self.ended
                self.ended[lost] = "failed"
                self.scheduler.finish(lost)
            return batch
        assert self.context.decode(batch), "the books promised room"
        self.scheduler.watch(lambda slot: self.context.lost.get(slot, 0))
        self._watch_the_oldest(batch)
        self.scheduler.computed(batch, STEP_S)
        for chunk in batch.chunks:
            if chunk.last:
                self._advance(chunk)
        return batch

    def _watch_the_oldest(self, batch: Batch) -> None:
        oldest = self.scheduler.running[0]
        if oldest is not self.oldest or batch.chunks[0].sequence.adapters == oldest.adapters:
            self.oldest, self.n_passed_over = oldest, 0
            return
        self.n_passed_over += 1
        others = self.scheduler._parallel - 1
        assert self.n_passed_over <= others * -(-TURN_S // STEP_S), "one turn of each other set"

    def guess(self, right: int, wrong: int) -> None:
        """Put `right` right and then `wrong` wrong guesses beside everyone who decodes."""
        for sequence in self.scheduler.running:
            if not sequence.decoding or sequence.donor is not None:
                continue
            tokens = list(sequence.tokens)
            for _ in range(right):
                tokens.append(next_token(tokens))
            tokens += [(next_token(tokens) + 1) % N_VOCAB] * wrong
            room = sequence.context - len(sequence.tokens) - 1
            sequence.guesses = tokens[len(sequence.tokens) :][: max(0, room)]

    def _advance(self, chunk: Chunk) -> None:
        sequence, n_right, reason = chunk.sequence, 0, None
        for guess in (*chunk.guesses, None):
            assert sequence not in self.ended
            token = next_token(sequence.tokens)
            self.answers[sequence].append(token)
            reason = sequence.append(token, {END})
            if reason is not None or token != guess:
                break
            n_right += 1
        if chunk.guesses:
            self.scheduler.settle(chunk, n_right)
        if reason is not None:
            self.ended[sequence] = reason
            self.scheduler.finish(sequence)

    def check(self) -> None:
        """Every cell has an owner, nobody sees another's tokens, every request is in one place."""
        self._check_places()
        self._check_books()
        self._check_memory()

    def _check_places(self) -> None:
        scheduler = self.scheduler
        waiting, running = list(scheduler.waiting), scheduler.running
        residents = scheduler.pool.residents
        for some in (waiting, running):
            assert some == sorted(some, key=lambda s: s.arrival), "who came first goes first"
        open_ones = [s for s in self.answers if s not in self.ended]
        assert sorted(map(id, waiting + running)) == sorted(map(id, open_ones))
        assert len(set(residents)) == len(residents)
        stay = {r for r in residents if not r.checkpoint}
        assert self.ended.keys() | self.restored >= stay
        for sequence in waiting:
            assert sequence.slot is None
            assert not sequence.cells
            assert sequence.n_computed == 0
        for sequence in running:
            assert sequence.pending > 0, "nobody runs for nothing"
            assert sequence.donor is None or sequence.donor in running
            prompt, answer = self.prompts[sequence], self.answers[sequence]
            assert sequence.tokens == prompt + answer, "tokens never change"

    def _check_books(self) -> None:
        pool, running = self.scheduler.pool, self.scheduler.running
        holders = running + pool.residents
        slots = [s.slot for s in holders]
        assert len(set(slots)) == len(slots)
        assert None not in slots
        users = Counter(cell for holder in holders for cell in holder.cells)
        runners = Counter(cell for holder in running for cell in holder.cells)
        for holder in holders:
            assert len(holder.cells) == len(set(holder.cells)) == holder.n_computed
            assert pool.cells.own(holder.cells) == sum(users[c] == 1 for c in holder.cells)
            assert pool.cells.unheld(holder.cells) == sum(not runners[c] for c in holder.cells)
        assert pool.cells.used == len(users) <= pool.cells.total
        assert pool.cells.evictable == len(users.keys() - runners.keys())

    def _check_memory(self) -> None:
        """Compare the books with what lies in the context, cell by cell."""
        pool = self.scheduler.pool
        context = self.context.after(pool.operations)
        slots = {s.slot: s for s in self.scheduler.running + pool.residents}
        places: dict[int, int] = {}  # which cell of the books is which of the context
        for slot, cells in context.slots.items():
            holder = slots.pop(slot, None)
            if holder is None:
                assert not cells, "cells without an owner"
                continue
            assert context.content(holder) == holder.tokens[: holder.n_computed]
            for cell, number in zip(cells, holder.cells, strict=True):
                assert places.setdefault(number, id(cell)) == id(cell)
        assert not any(holder.cells for holder in slots.values())
        assert len(places) == len(set(places.values())) == context.used

    def run_out(self, limit: int = 5000) -> None:
        """Step until nothing is left to do."""
        for _ in range(limit):
            if self.scheduler.idle:
                return
            self.step()
            self.check()
        raise AssertionError("the scheduler does not come to an end")
