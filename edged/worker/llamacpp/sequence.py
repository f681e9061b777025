"""The token state of one generation: what was asked, what is computed, how it ended.

Pure. A sequence is decoding when exactly one of its tokens is not computed yet, and prefilling
when more are; a preempted sequence goes back to nothing computed and loses no token.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

Reason = Literal["stop", "length"]

# Which LoRA adapters change the model, by the runner's number, and how much each; sorted.
Adapters = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Places of a prompt that hold an image or a sound: what `tokens` has there names its content.

    A prompt never ends with one. Its middle is no place to cut or to share at.
    """

    start: int
    n: int  # places, and cells
    n_positions: int  # that they take; fewer where positions have two dimensions
    whole: bool  # computed in one step

    @property
    def end(self) -> int:
        """The place behind it."""
        return self.start + self.n


class Sequence:
    """Tokens, cells and place of one generation. Written by the scheduler's thread only.

    `spans` are the images and sounds of the prompt, in order.

    `adapters` change the model for it; whoever sets them names them in `group` too, since what was
    computed with others is of no use.

    `tokens` are prompt and answer; the first `n_computed` of them lie in `cells`, under the
    sequence id `slot` of the context (None: not admitted, or preempted).
    """

    __slots__ = (
        "adapters",
        "arrival",
        "border",
        "cells",
        "checkpoint",
        "context",
        "donor",
        "followed",
        "group",
        "guesses",
        "lost",
        "max_tokens",
        "n_borrowed",
        "n_cached",
        "n_computed",
        "n_prompt",
        "passed_over",
        "slot",
        "spans",
        "stops",
        "tokens",
        "used_at",
        "uses",
    )

    def __init__(
        self,
        prompt: list[int],
        *,
        context: int,
        max_tokens: int | None = None,
        group: str = "",
        spans: tuple[Span, ...] = (),
        border: int = 0,
    ) -> None:
        """`border`: up to here the next turn of the conversation will say the same; 0: unknown."""
        assert 0 < len(prompt) < context
        assert not spans or spans[-1].end < len(prompt)
        self.spans = spans
        self.tokens = prompt
        self.n_prompt = len(prompt)
        self.context = context
        self.max_tokens = max_tokens
        self.group = group
        self.border = border
        self.stops: set[int] = set()  # places at which it pauses, see `checkpoints`
        self.checkpoint = False  # a resident that keeps the memory of a place on the way
        self.lost = 0  # positions from the first on that layers with a window have forgotten
        self.adapters: Adapters = ()
        self.arrival = 0  # the scheduler's count: who came first goes first
        self.slot: int | None = None
        self.cells: list[int] = []
        self.n_computed = 0
        self.n_cached: int | None = None  # prompt tokens found in memory; None until admitted
        self.donor: Sequence | None = None  # waits until this one has computed `n_borrowed`
        self.n_borrowed = 0
        self.followed = 0  # `arrival` of the donor that it waited for, until it goes on
        self.passed_over = 0  # steps in a row in which it got no prefill budget
        self.guesses: list[int] = []  # for the tokens after the newest, tried in the next step
        self.used_at = 0  # the scheduler's clock at the last use as a resident
        self.uses = 0  # times that it, or what it continues, was of use to a request

    @property
    def pending(self) -> int:
        """Tokens that are not computed yet."""
        return len(self.tokens) - self.n_computed

    @property
    def n_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.n_prompt

    @property
    def decoding(self) -> bool:
        """Only the newest token is missing: the next step yields another one."""
        return self.pending == 1

    # ── places and positions ──

    def position(self, n: int) -> int:
        """Return the position that follows the first `n` places, which end outside of spans.

        Inside a span it is right only if the span takes as many positions as places.
        """
        return n - sum(s.n - s.n_positions for s in self.spans if s.end <= n)

    def floor(self, n: int) -> int:
        """Return the last place up to `n` at which the sequence may be cut or shared."""
        return next((s.start for s in self.spans if s.start < n < s.end), n)

    def ahead(self) -> tuple[Span | None, int]:
        """Return (span of the next place, its rest), or (None, tokens before the next span)."""
        at = self.n_computed
        for span in self.spans:
            if at < span.start:
                return None, span.start - at
            if at < span.end:
                return span, span.end - at
        return None, self.pending

    def append(self, token: int, ends: Container[int]) -> Reason | None:
        """Take the sampled token; return the reason if the generation is over with it.

        The token that ends a generation regularly is counted and kept like every other one.
        """
        self.tokens.append(token)
        if token in ends:
            return "stop"
        if self.max_tokens is not None and self.n_generated >= self.max_tokens:
            return "length"
        if len(self.tokens) >= self.context:
            return "length"
        return None
