"""One step of the engine: what is done to the memory, then one decode.

Pure. The scheduler makes it, the engine thread carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edged.worker.llamacpp.sequence import Sequence, Span


@dataclass(frozen=True, slots=True)
class Share:
    """Let slot `target` use the first `n` positions of slot `source`."""

    source: int
    target: int
    n: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Remove the positions of slot `slot` from `start` on; 0 clears it."""

    slot: int
    start: int = 0


Operation = Share | Cut


@dataclass(slots=True)
class Chunk:
    """`n` tokens of `sequence` from `start` on; `last`: they reach its end, so logits are due.

    `guesses` for the tokens behind them are computed too, with logits: the sampled tokens tell
    which of them were right. `span`: they are no tokens, but a part of this image or sound. Such
    a chunk is alone in its batch.
    """

    sequence: Sequence
    start: int
    n: int
    last: bool
    span: Span | None = None
    guesses: tuple[int, ...] = ()

    @property
    def n_cells(self) -> int:
        """Cells that the step writes."""
        return self.n + len(self.guesses)

    @property
    def goes_on(self) -> bool:
        """An answer goes on: it is the token that was sampled last, and wants the next one."""
        return self.n == 1 and self.last

    @property
    def slot(self) -> int:
        """The sequence id under which they are computed."""
        slot = self.sequence.slot
        assert slot is not None, "who is in a step has not given way"
        return slot


@dataclass(slots=True)
class Batch:
    """One step: the operations first, then one decode of the chunks."""

    operations: list[Operation] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def decoding(self) -> bool:
        """Nothing but the next token of each sequence, and guesses for those behind it."""
        return all(chunk.n == 1 and chunk.span is None for chunk in self.chunks)

    @property
    def n_tokens(self) -> int:
        """Tokens that it computes, guesses too."""
        return sum(chunk.n_cells for chunk in self.chunks)

    @property
    def streaming(self) -> bool:
        """Some answers go on in it."""
        return any(chunk.goes_on for chunk in self.chunks)
