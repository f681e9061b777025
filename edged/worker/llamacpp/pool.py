"""What lies in the memory of one context: slots, cells, and the residents that may be shared.

Pure. The scheduler decides who runs; here is kept who holds which cells under which sequence id
(slot), what stays behind when a sequence ends, and who leaves when room is wanted. Every change
of llama.cpp's own memory is an operation, which the engine thread carries out before the next
decode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from edged.worker.llamacpp import checkpoints
from edged.worker.llamacpp.cells import Cells
from edged.worker.llamacpp.prefixes import Prefixes
from edged.worker.llamacpp.sequence import Sequence, Span
from edged.worker.llamacpp.step import Cut, Operation, Share

_WORTH = 32  # tokens that waiting for another prefill, or a checkpoint, must save


class Choice(NamedTuple):
    """What memory has to offer for a prompt."""

    source: Sequence | None  # whose prefix to use now
    n: int  # its length
    wait_for: tuple[Sequence, int] | None  # (who, length) if waiting pays more
    agreed: int  # how far the longest match goes, usable or not


class Pool:
    """Slots, cells and residents. One owner: the scheduler."""

    def __init__(
        self,
        *,
        cells: int,
        slots: int,
        cuttable: bool,
        window: int = 0,
        keeps_checkpoints: bool = False,
    ) -> None:
        """`slots`: sequence ids of the context.

        `cuttable`: memory may be shared up to any position. Otherwise (recurrent, hybrid) it is
        of use only where it stands. `window`: positions that some layers look back on, so that
        memory is of use only where these still remember; 0: no such layers. `keeps_checkpoints`:
        as `checkpoints` describes them.
        """
        self.cells = Cells(cells)
        self.residents: list[Sequence] = []
        self.cuttable = cuttable
        self.operations: list[Operation] = []
        self.worth = _WORTH
        self._window = window
        self._keeps_checkpoints = keeps_checkpoints
        self._free_slots = list(range(slots - 1, -1, -1))
        self._prefixes: Prefixes[Sequence] = Prefixes()
        self._clock = 0

    def take_operations(self) -> list[Operation]:
        """Return what has to be done to llama.cpp's memory, in order, and forget it."""
        operations, self.operations = self.operations, []
        return operations

    # ── whose prefix ──

    def choose(self, sequence: Sequence) -> Choice:
        """Return whose prefix a new sequence should use."""
        limit = len(sequence.tokens) - 1  # one token must be computed, for its logits
        best: Sequence | None = None
        n = agreed = 0
        coming: tuple[Sequence, int] | None = None
        for matched, holders in self._prefixes.match(sequence.group, sequence.tokens):
            agreed = length = sequence.floor(min(matched, limit))
            for holder in _in_order(holders):
                if holder is sequence or holder.slot is None:
                    continue
                ready = sequence.floor(min(length, holder.n_computed))
                if ready > n and self._serves(holder, ready):
                    best, n = holder, ready
                if holder.n_computed < length and (coming is None or length > coming[1]):
                    coming = (holder, length)
        if coming is not None and coming[1] - n < self.worth:
            coming = None
        return Choice(best, n, coming, agreed)

    def _serves(self, holder: Sequence, n: int) -> bool:
        """Tell whether what lies in memory of `holder` can be used after exactly `n` tokens."""
        if not self.cuttable:
            return holder.n_computed == n
        return self._window == 0 or holder.lost <= max(0, holder.position(n) - self._window + 1)

    def place(self, sequence: Sequence, source: Sequence | None, n: int) -> bool:
        """Give a new sequence its slot; True if it is that of `source`, with all that lies there.

        `n`: how much of the resident `source` is of use.
        """
        ended = source is not None and source in self.residents and not source.checkpoint
        if source is not None and ended and n == source.n_computed:
            self._take_over(source, sequence)
            return True
        sequence.slot = self._take_slot(keep=source)
        return False

    def announce(self, sequence: Sequence, start: int, agreed: int) -> None:
        """Let others find the prefix of a running sequence, which begins behind `start` tokens.

        `agreed`: see `Choice`.
        """
        self._prefixes.put(sequence, sequence.group, sequence.tokens)
        sequence.stops.clear()
        if self._keeps_checkpoints:
            checkpoints.plan(sequence, start, agreed, self.worth)

    def await_prefix(self, sequence: Sequence, donor: Sequence, n: int) -> None:
        """Let a sequence wait until `donor` has computed `n` tokens.

        The donor pauses there. Where memory can only be shared in passing it has to; elsewhere its
        rest and those of all who wait then share one step, before any of them is a stream that
        keeps the others' steps short (22 % off the slowest first token of eight).
        """
        sequence.donor, sequence.n_borrowed = donor, n
        checkpoints.stop_at(donor, n)

    def lend(self, sequence: Sequence) -> None:
        """Give a sequence that waits what its donor has by now; it waits no longer."""
        donor, sequence.donor = sequence.donor, None
        assert donor is not None
        sequence.followed = donor.arrival
        n = sequence.floor(min(donor.n_computed, sequence.n_borrowed))
        if n > 0 and self._serves(donor, n):
            self.share(donor, sequence, n)
        if sequence.n_cached is None:
            sequence.n_cached = sequence.n_computed

    def share(self, source: Sequence, target: Sequence, n: int) -> None:
        """Let `target`, which has computed nothing, use the first `n` tokens of `source`."""
        assert source.slot is not None
        assert target.slot is not None
        assert target.n_computed == 0
        self.operations.append(Share(source.slot, target.slot, target.position(n)))
        target.cells = source.cells[:n]
        target.n_computed = n
        target.lost = source.lost
        self.cells.share(target.cells)
        self._touch(source)

    def _take_over(self, resident: Sequence, sequence: Sequence) -> None:
        """Continue a resident from its end, in its own slot."""
        self.residents.remove(resident)
        self._prefixes.remove(resident)
        self.cells.hold(resident.cells)
        sequence.slot, resident.slot = resident.slot, None
        sequence.cells, resident.cells = resident.cells, []
        sequence.n_computed = resident.n_computed
        sequence.uses = resident.uses
        sequence.lost = resident.lost

    def _take_slot(self, keep: Sequence | None) -> int:
        if not self._free_slots:
            others = [r for r in self.residents if r is not keep]
            self.evict(min(others, key=lambda r: r.used_at))
        return self._free_slots.pop()

    # ── what stays ──

    def passed(self, sequence: Sequence) -> None:
        """A running sequence has computed more: leave a checkpoint if this is the place for one."""
        if checkpoints.due(sequence) and self._keeps_checkpoints:
            self._keep(sequence)

    def _keep(self, sequence: Sequence) -> None:
        """Let a resident stand for what a running sequence has computed by now; no data moves."""
        n = sequence.n_computed
        behind_image = any(span.end == n for span in sequence.spans)
        if behind_image or self._known(sequence) or not (self._free_slots or self.residents):
            return
        twin = Sequence(
            sequence.tokens[:n],
            context=sequence.context,
            group=sequence.group,
            spans=tuple(span for span in sequence.spans if span.end < n),
        )
        twin.checkpoint = True
        twin.adapters = sequence.adapters
        twin.arrival = sequence.arrival
        twin.slot = self._take_slot(keep=None)
        self.share(sequence, twin, n)
        self._settle(twin)

    def watch(self, running: list[Sequence], first_position: Callable[[int], int]) -> None:
        """After a decode: see what layers with a window still remember of whom."""
        if self._window == 0:
            return
        for sequence in running + self.residents:
            if sequence.slot is not None:
                sequence.lost = max(0, first_position(sequence.slot))

    def retire(self, sequence: Sequence, *, keep: bool) -> None:
        """A sequence runs no longer: it stays as a resident, unless it is of no use."""
        keep = self.cut_back(sequence) and keep
        del sequence.tokens[sequence.n_computed :]
        if not keep or sequence.n_computed == 0 or self._known(sequence):
            self.drop(sequence)
            return
        self._stay(sequence)

    def _stay(self, sequence: Sequence) -> None:
        self._settle(sequence)
        for other in self._contained_in(sequence):
            self.evict(other)

    def _settle(self, sequence: Sequence) -> None:
        self.cells.rest(sequence.cells)
        self._touch(sequence)
        self.residents.append(sequence)
        self._prefixes.put(sequence, sequence.group, sequence.tokens)

    def is_whole(self, resident: Sequence) -> bool:
        """Tell whether a resident can be continued from its very end."""
        return self._serves(resident, resident.n_computed)

    def has_room(self, n: int) -> bool:
        """Tell whether a resident of `n` tokens could come without taking from a running one."""
        slot = bool(self._free_slots or self.residents)
        return slot and n <= self.cells.free + self.cells.evictable

    def adopt(
        self, group: str, tokens: list[int], spans: tuple[Span, ...], uses: int
    ) -> Sequence | None:
        """Make a resident of tokens whose state comes from elsewhere; None: no room, or no need.

        Others may leave for it: operations, which come before its state is put into its slot.
        """
        n = len(tokens)
        sequence = Sequence(list(tokens), context=n + 1, group=group)
        sequence.spans = spans  # the last may end where the tokens do
        sequence.uses = uses
        sequence.n_computed = n
        if self._known(sequence) or not self.has_room(n) or not self.make_room(n):
            return None
        sequence.slot = self._take_slot(keep=None)
        sequence.cells = self.cells.take(n)
        self._stay(sequence)
        return sequence

    def _known(self, sequence: Sequence) -> bool:
        """Tell whether a resident already holds all that this sequence has computed."""
        for length, holders in self._prefixes.match(sequence.group, sequence.tokens):
            if length < sequence.n_computed:
                continue
            for holder in _in_order(holders):
                if holder in self.residents and self._serves(holder, sequence.n_computed):
                    self._touch(holder)
                    return True
        return False

    def _contained_in(self, sequence: Sequence) -> list[Sequence]:
        """Return the residents that this one can stand for: it begins with all their tokens."""
        found: list[Sequence] = []
        for length, holders in self._prefixes.match(sequence.group, sequence.tokens):
            found += [
                h for h in _in_order(holders) if h is not sequence and len(h.tokens) == length
            ]
        return [h for h in found if h in self.residents and self._serves(sequence, len(h.tokens))]

    # ── a running sequence's cells ──

    def grow(self, sequence: Sequence, n: int) -> None:
        """Give a running sequence `n` fresh cells; the caller has made room."""
        sequence.cells += self.cells.take(n)

    def shrink(self, sequence: Sequence, n: int) -> None:
        """Take the last `n` cells of a running sequence back: nothing was computed into them."""
        cells = sequence.cells
        back = cells[len(cells) - n :]
        del cells[len(cells) - n :]
        self.cells.rest(back)
        self.cells.release(back)

    def cut_back(self, sequence: Sequence) -> bool:
        """Forget the beginning of an image that was not computed to its end; True if that works."""
        n = sequence.n_computed - sequence.floor(sequence.n_computed)
        if n == 0:
            return True
        if not self._serves(sequence, sequence.n_computed - n):
            return False
        self.shrink(sequence, n)
        sequence.n_computed -= n
        self.cut(sequence)
        return True

    def cut(self, sequence: Sequence) -> None:
        """Remove from memory what lies behind the computed tokens of a sequence."""
        assert sequence.slot is not None
        self.operations.append(Cut(sequence.slot, sequence.position(sequence.n_computed)))

    def drop(self, sequence: Sequence) -> None:
        """Take a running sequence's cells and slot; nothing of it stays."""
        self.cells.rest(sequence.cells)
        self.cells.release(sequence.cells)
        sequence.cells = []
        sequence.lost = 0
        self._leave_slot(sequence)

    # ── room ──

    def make_room(self, n: int) -> bool:
        """Free at least `n` cells by dropping residents, the longest unused first."""
        while self.cells.free < n:
            useful = [r for r in self.residents if self.cells.own(r.cells)]
            if not useful:
                # Cells that residents share among themselves are freed with the last of them.
                if self.cells.evictable == 0 or not self.residents:
                    return False
                useful = self.residents
            self.evict(min(useful, key=lambda r: r.used_at))
        return True

    def evict_oldest(self) -> bool:
        """Drop the resident that was unused for the longest time; False if there is none."""
        if not self.residents:
            return False
        self.evict(min(self.residents, key=lambda r: r.used_at))
        return True

    def evict(self, resident: Sequence) -> None:
        """Drop one resident."""
        self.residents.remove(resident)
        self.cells.release(resident.cells)
        resident.cells = []
        self._leave_slot(resident)

    def _leave_slot(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self._prefixes.remove(sequence)
        self.operations.append(Cut(sequence.slot))
        self._free_slots.append(sequence.slot)
        sequence.slot = None

    def _touch(self, sequence: Sequence) -> None:
        self._clock += 1
        sequence.used_at = self._clock
        sequence.uses += 1


def _in_order(holders: set[Sequence]) -> list[Sequence]:
    """Return them as they arrived: what is done must not hang on memory addresses."""
    # Checkpoints arrived with their sequence, and restored ones never did: their slots differ.
    return sorted(holders, key=lambda h: (h.arrival, -1 if h.slot is None else h.slot))
