"""One streamed answer as its client saw it, and what several of them say about speed. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct


class AnswerError(Exception):
    """The answer did not come, or not whole; the message says why."""


class Answer(Struct, frozen=True):
    """Times are s of one clock; counts are those of the `usage` that came with it."""

    sent_s: float
    texts_s: tuple[float, ...]  # when each piece of text arrived
    ended_s: float  # when the reason of the end arrived
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def ttft_s(self) -> float:
        """From the request to its first token."""
        return (self.texts_s[0] if self.texts_s else self.ended_s) - self.sent_s

    def tokens_per_s(self, since_s: float, until_s: float) -> float | None:
        """Return the rate of the tokens that arrived in this time; None if that were too few.

        A piece of text may stand for several tokens (half a character is held back): each counts
        as its share of all.
        """
        times = [at for at in self.texts_s if since_s <= at <= until_s]
        if len(times) < 2 or times[-1] == times[0]:  # noqa: PLR2004 - one gap
            return None
        each = self.completion_tokens / len(self.texts_s)
        return (len(times) - 1) * each / (times[-1] - times[0])


def read(sent_s: float, pieces: Sequence[tuple[float, bytes]]) -> Answer:
    """Return the answer of a stream of `/v1/completions`: what arrived, and when.

    Raises AnswerError with the message of a stream that ends in an error, or before its end.
    """
    texts_s: list[float] = []
    ended_s, usage, rest = 0.0, None, b""
    for arrived_s, data in pieces:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = _decode(line.removeprefix(b"data: "))
            if event.error is not None:
                raise AnswerError(event.error.message)
            for choice in event.choices:
                if choice.text:
                    texts_s.append(arrived_s)
                if choice.finish_reason:
                    ended_s = arrived_s
            usage = event.usage or usage
    if usage is None or not ended_s:
        raise AnswerError("the answer broke off before its end")
    return Answer(
        sent_s,
        tuple(texts_s),
        ended_s,
        usage.prompt_tokens,
        usage.prompt_tokens_details.cached_tokens,
        usage.completion_tokens,
    )


def decode_rate(answers: Sequence[Answer]) -> float | None:
    """Return the tokens per second of all these together, while every one of them was receiving.

    If they never were at the same time, from the first token of any to the last of all, which is
    less. None: too few tokens to say.
    """
    firsts = [answer.texts_s[0] for answer in answers if answer.texts_s]
    if len(firsts) < len(answers):
        return None
    until_s = min(answer.texts_s[-1] for answer in answers)
    rates = [answer.tokens_per_s(max(firsts), until_s) for answer in answers]
    known = [rate for rate in rates if rate is not None]
    if len(known) == len(answers):
        return sum(known)
    n_tokens = sum(answer.completion_tokens for answer in answers) - 1
    span_s = max(answer.ended_s for answer in answers) - min(firsts)
    return n_tokens / span_s if n_tokens > 0 and span_s > 0 else None


# ── the wire ──


class _Choice(Struct):
    text: str = ""
    finish_reason: str | None = None


class _Details(Struct):
    cached_tokens: int


class _Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _Details


class _Error(Struct):
    message: str


class _Event(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Event).decode
