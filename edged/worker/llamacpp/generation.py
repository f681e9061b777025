"""One running answer: from a row of logits to a token, its text and the events of both.

The engine thread's, from the moment it is admitted. `plain` answers (no grammar, no likelihoods,
no tools, no budget for reasoning) take a short way, as it is gone for every token of every stream.
"""

from __future__ import annotations

import time
from collections import deque

import msgspec

from edged.protocol import Chosen, Delta, Event, Finish, Timings, Usage
from edged.worker.llamacpp.answer_grammar import Calls
from edged.worker.llamacpp.constrain import Grammars, GrammarStuckError, Guide
from edged.worker.llamacpp.likelihood import chosen
from edged.worker.llamacpp.prepare import Prepared
from edged.worker.llamacpp.sampling import NoChoiceError, Row
from edged.worker.llamacpp.sequence import Reason
from edged.worker.llamacpp.vocabulary import Vocab
from edged.worker.output import NOTHING, Piece, Trigger
from edged.worker.output import likelihoods as held_back


class Generation:
    """One running request, as the engine thread sees it."""

    __slots__ = (
        "_awaited",
        "_calls",
        "_closing",
        "_ends",
        "_enforced",
        "_forced",
        "_grammars",
        "_guide",
        "_likelihoods",
        "_n_reasoning",
        "_n_tokens",
        "_n_unshown",
        "_output",
        "_plain",
        "_sampler",
        "_thinking_budget",
        "_thinks",
        "_top",
        "_vocab",
        "arrived_s",
        "first_token_s",
        "id",
        "pieces",
        "sequence",
        "started_s",
        "vectors",
    )

    def __init__(
        self,
        request_id: int,
        prepared: Prepared,
        vocab: Vocab,
        grammars: Grammars,
        *,
        guide: Guide | None,
        arrived_s: float,
    ) -> None:
        """`guide`: the grammar that the whole answer has to follow."""
        self.id = request_id
        self.sequence = prepared.sequence
        self.pieces = prepared.pieces  # one for each span of the sequence
        self.vectors = prepared.vectors
        self.arrived_s = arrived_s
        self.started_s = 0.0  # first step with it
        self.first_token_s = 0.0
        self._sampler = prepared.sampler
        self._output = prepared.output
        self._ends = prepared.ends
        self._vocab = vocab
        self._grammars = grammars
        self._guide = guide
        self._awaited: tuple[Trigger, str] | None = None  # a grammar that is being compiled
        self._calls = prepared.calls if guide is None else None  # what may be begun, unguided yet
        self._top = prepared.likelihoods  # alternatives told with each token
        self._likelihoods: list[tuple[Chosen, int]] = []  # of what is held back, with their bytes
        self._thinking_budget = prepared.thinking_budget
        self._closing = prepared.closing  # the tokens that end the reasoning
        self._forced: deque[int] = deque()  # what follows, whatever the model thinks of it
        self._n_tokens = 0  # of the answer
        self._n_reasoning = 0
        self._n_unshown = 0  # tokens whose text is still held back
        self._thinks = prepared.thinking
        self._plain = (
            guide is None
            and self._calls is None
            and self._top is None
            and self._thinking_budget is None
        )
        self._enforced = guide is not None and prepared.enforced  # what is not reasoning is calls
        if self._enforced:
            self._output.enforce()
        if self._thinking_budget == 0 and prepared.thinking:
            self._forced.extend(self._closing)

    def advance(self, row: Row, events: list[Event]) -> bool:
        """Choose the next token, add what it sets free to `events`; True if that was the last.

        `row` are the logits for it, and are changed. Raises NoChoiceError, GrammarStuckError.
        """
        token = self._sampler.sample(row) if self._plain else self._choose(row)
        if token is None:
            self._finish("stop", events)
            return True
        reason = self.sequence.append(token, self._ends)
        self._n_tokens += 1
        self._n_unshown += 1
        shown = self._output
        piece = NOTHING if reason == "stop" else shown.feed(self._vocab.piece(token))
        if shown.reasoning and not self._forced:
            self._n_reasoning += 1
        if not self._plain:
            reason = self._watch(token, reason)
        if piece.stopped:
            reason = "stop"
        if piece.shows:
            events.append(self._delta(piece))
        if reason is not None:
            self._finish(reason, events, piece.stop)
        return reason is not None

    # ── what is not plain ──

    def _choose(self, row: Row) -> int | None:
        """Return the next token; None if the grammar is at its end and no end token is allowed."""
        guide, top = self._guide, self._top
        unchanged = None if top is None else row.copy()
        if self._forced:
            token = self._forced.popleft()
            self._sampler.take(token)
        elif guide is None:
            token = self._sampler.sample(row)
        else:
            guide.narrow(row)
            try:
                token = self._sampler.sample(row)
            except NoChoiceError:
                if guide.complete:
                    return None
                raise
        if guide is not None and token not in self._ends:
            guide.take(token)
        if unchanged is not None and token not in self._ends:
            likelihood = chosen(unchanged, token, top or 0, self._vocab.spelling)
            self._likelihoods.append((likelihood, len(self._vocab.piece(token))))
        return token

    def _watch(self, token: int, reason: Reason | None) -> Reason | None:
        """Look where the answer has got to: in its grammar, its reasoning, the calls it begins."""
        if self._guide is not None:
            if self._guide.over and token not in self._ends:
                return "stop"
        elif self._calls is not None and self._output.triggered is not None:
            self._begin_call()
        thought, self._thinks = self._thinks, self._output.reasoning
        if thought or self._thinks:
            self._likelihoods.clear()
            self._limit_thoughts()
        return reason

    def _limit_thoughts(self) -> None:
        """Write what ends the reasoning if it has had its tokens."""
        budget = self._thinking_budget
        if self._forced or budget is None or not self._thinks or self._n_reasoning < budget:
            return
        if self._guide is None or self._guide.allows(self._closing):
            self._forced.extend(self._closing)

    def _begin_call(self) -> None:
        """Let the grammar of calls guide the answer from here on, as soon as it is compiled."""
        found = self._output.triggered
        assert found is not None
        assert self._calls is not None
        trigger, text = found
        try:
            guide = self._guide_after(trigger, self._calls)
        except (GrammarStuckError, ValueError):  # a call is still read, or shown as the text it is
            self._calls = None
            return
        if guide is None:  # being compiled; what is written until then has to fit
            return
        written = self._vocab.tokenize([(text, True)], wrap=False) if text else []
        if guide.takes(written):
            self._guide, self._enforced = guide, True
            self._output.enforce()
        self._calls = None

    def _guide_after(self, trigger: Trigger, calls: Calls) -> Guide | None:
        awaited = self._awaited
        if awaited is not None and awaited[0] == trigger:
            return self._grammars.guide_now(awaited[1], wait=False)
        grammar = calls.after(trigger).text
        self._awaited = (trigger, grammar)
        return self._grammars.guide_now(grammar, wait=True)

    # ── events ──

    def _delta(self, piece: Piece) -> Delta:
        n, self._n_unshown = self._n_unshown, 0
        if self._plain:
            return Delta(self.id, piece.content, piece.reasoning, n_tokens=n)
        likelihoods = self._released(piece) if self._likelihoods else []
        return Delta(
            self.id,
            piece.content,
            piece.reasoning,
            list(piece.calls),
            likelihoods,
            n,
        )

    def _released(self, piece: Piece) -> list[Chosen]:
        """Return the likelihoods of the tokens whose text a piece shows; forget those before it."""
        held, self._likelihoods = self._likelihoods, []
        return held_back.shown(held, piece)

    def _finish(self, reason: Reason, events: list[Event], stop: str | None = None) -> None:
        rest = self._output.finish(cut=reason == "length")
        if self._enforced and rest.content:  # the beginning of a call that is cut off
            rest = msgspec.structs.replace(rest, content="")
        if rest.shows:
            events.append(self._delta(rest))
        if rest.stopped:
            reason, stop = "stop", rest.stop
        now = time.monotonic()
        usage = Usage(
            prompt_tokens=self.sequence.n_prompt,
            completion_tokens=self._n_tokens,
            cached_tokens=self.sequence.n_cached or 0,
            reasoning_tokens=self._n_reasoning,
        )
        timings = Timings(
            queue_ms=_ms(self.started_s - self.arrived_s),
            prefill_ms=_ms(self.first_token_s - self.started_s),
            decode_ms=_ms(now - self.first_token_s),
        )
        called = reason == "stop" and self._output.called
        events.append(Finish(self.id, "tool_calls" if called else reason, usage, timings, stop))


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
