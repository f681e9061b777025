"""One running answer: LMDeploy's tokens become text and the events of a client.

The text is our own: LMDeploy knows stop strings of one token only and tells of no bytes, so tokens
are spelt here, and reasoning, calls and stop strings found by the parser that both engines share.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from edged.protocol import Chosen, Delta, Event, Finish, Likelihood, Timings, Usage
from edged.worker.lmdeploy.prepare import Prepared
from edged.worker.lmdeploy.vocabulary import Vocab
from edged.worker.output import NOTHING, Piece
from edged.worker.output import likelihoods as held_back

_LOWEST = -9999.0  # JSON knows no infinity; OpenAI says this for what is all but impossible
Reason = Literal["stop", "length"]


class Generation:
    """The state of one answer, in the loop."""

    def __init__(self, request_id: int, prepared: Prepared, vocab: Vocab) -> None:
        self.id = request_id
        self.over = False
        self.n_prompt = len(prepared.tokens)
        self.n_cached = 0
        self.n_tokens = 0  # of the answer
        self._output = prepared.output
        if prepared.enforced:
            self._output.enforce()
        self._enforced = prepared.enforced
        self._ends = prepared.ends
        self._top = prepared.likelihoods
        self._vocab = vocab
        self._n_reasoning = 0
        self._n_unshown = 0  # tokens whose text is still held back
        self._likelihoods: list[tuple[Chosen, int]] = []  # of what is held back, with their bytes
        self._arrived_s = time.monotonic()
        self._first_s = 0.0

    def feed(
        self, tokens: Sequence[int], likelihoods: Sequence[Mapping[int, float]] | None
    ) -> list[Event]:
        """Take the next tokens and return what may be shown; `over` tells whether that is all."""
        self._first_s = self._first_s or time.monotonic()
        events: list[Event] = []
        shown = NOTHING
        for n, token in enumerate(tokens):
            self.n_tokens += 1
            self._n_unshown += 1
            if token in self._ends:
                events += self._delta(shown)
                events += self.finish("stop")
                return events
            if self._top is not None and likelihoods is not None and n < len(likelihoods):
                chosen = self._chosen(token, likelihoods[n])
                self._likelihoods.append((chosen, len(self._vocab.piece(token))))
            thought = self._output.reasoning
            piece = self._output.feed(self._vocab.piece(token))
            self._n_reasoning += self._output.reasoning
            if thought or self._output.reasoning:
                self._likelihoods.clear()
            shown = _joined(shown, piece)
            if piece.stopped:
                events += self._delta(shown)
                events += self.finish("stop", piece.stop)
                return events
        return events + self._delta(shown)

    def finish(self, reason: Reason, stop: str | None = None) -> list[Event]:
        """Return the last events of the answer."""
        self.over = True
        rest = self._output.finish(cut=reason == "length")
        if self._enforced and rest.content:  # the beginning of a call that is cut off
            rest = msgspec.structs.replace(rest, content="")
        events = self._delta(rest)
        if rest.stopped:
            reason, stop = "stop", rest.stop
        now = time.monotonic()
        first = self._first_s or now
        usage = Usage(
            prompt_tokens=self.n_prompt,
            completion_tokens=self.n_tokens,
            cached_tokens=min(self.n_cached, self.n_prompt),
            reasoning_tokens=self._n_reasoning,
        )
        timings = Timings(
            prefill_ms=round((first - self._arrived_s) * 1e3, 3),
            decode_ms=round((now - first) * 1e3, 3),
        )
        called = reason == "stop" and self._output.called
        return [*events, Finish(self.id, "tool_calls" if called else reason, usage, timings, stop)]

    def ended(self) -> list[Event]:
        """Return the last events of an answer that the engine ended with an end token."""
        self.n_tokens += 1  # which it does not hand out
        self._n_unshown += 1
        return self.finish("stop")

    def _delta(self, piece: Piece) -> list[Event]:
        if not piece.shows:
            return []
        n, self._n_unshown = self._n_unshown, 0
        likelihoods = self._released(piece) if self._likelihoods else []
        calls = list(piece.calls)
        return [Delta(self.id, piece.content, piece.reasoning, calls, likelihoods, n)]

    def _released(self, piece: Piece) -> list[Chosen]:
        """Return the likelihoods of the tokens whose text a piece shows; forget those before it."""
        held, self._likelihoods = self._likelihoods, []
        return held_back.shown(held, piece)

    def _chosen(self, token: int, row: Mapping[int, float]) -> Chosen:
        best = sorted(row.items(), key=lambda item: -item[1])[: self._top or 0]
        spelling = self._vocab.spelling
        return Chosen(
            token,
            spelling(token),
            max(float(row.get(token, _LOWEST)), _LOWEST),
            [Likelihood(each, spelling(each), max(float(p), _LOWEST)) for each, p in best],
        )


def _joined(one: Piece, other: Piece) -> Piece:
    if not one.shows:
        return other
    return Piece(
        one.content + other.content,
        one.reasoning + other.reasoning,
        [*one.calls, *other.calls],
        other.stop,
        other.stopped,
    )
