"""Events → the reply of `/v1/chat/completions`, whole and streamed."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from edged.api import events
from edged.api.error import sse
from edged.api.openai.envelope import Envelope, Whole, encode
from edged.errors import EdgedError
from edged.plan import ModelPlan
from edged.protocol import CallDelta, Chosen, Delta, Finish, Likelihood


class Called(Struct):
    """Of a tool call: `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(Struct):
    """A call that the client should make."""

    id: str
    function: Called
    type: str = "function"


class ReplyMessage(Struct, omit_defaults=False):
    """The answer. No content: there are calls only."""

    content: str | None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET
    role: str = "assistant"
    refusal: None = None


class Alternative(Struct):
    """A token and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Alternative):
    """The chosen token, and what else was likely at its place."""

    top_logprobs: list[Alternative]


class Logprobs(Struct):
    """Of the content's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class Choice(Struct):
    """One answer of a reply."""

    index: int
    message: ReplyMessage
    finish_reason: str
    logprobs: Logprobs | None = None


class ChatCompletion(Whole, kw_only=True):
    """Body of a whole reply."""

    choices: list[Choice]


class ChatReply:
    """Writes the reply to one chat request with `n` answers."""

    def __init__(
        self, plan: ModelPlan, *, n: int = 1, with_usage: bool, logprobs: bool = False
    ) -> None:
        self._n = n
        self._logprobs = logprobs
        self._envelope = Envelope(
            plan,
            prefix="chatcmpl",
            whole="chat.completion",
            chunk="chat.completion.chunk",
            with_usage=with_usage,
            n=n,
        )

    def whole(self, choices: list[events.Choice]) -> bytes:
        """Return the body of a whole reply."""
        envelope = self._envelope.whole([choice.finish for choice in choices])
        found = [self._choice(i, choice) for i, choice in enumerate(choices)]
        return encode(ChatCompletion(**envelope, choices=found))

    def _choice(self, index: int, said: events.Choice) -> Choice:
        calls = [ToolCall(call.id, Called(call.name, call.arguments)) for call in said.calls]
        message = ReplyMessage(
            said.content if said.content or not calls else None,
            said.reasoning or msgspec.UNSET,
            calls or msgspec.UNSET,
        )
        logprobs = Logprobs(_wire(said.logprobs)) if self._logprobs else None
        return Choice(index, message, said.finish.reason, logprobs)

    def opening(self, prompt_tokens: int) -> bytes:  # noqa: ARG002 - for dialects that tell it first
        """Return the chunks that carry the roles."""
        role = b'"role":"assistant","content":"","refusal":null'
        return b"".join([self._chunk(i, role) for i in range(self._n)])

    def piece(self, index: int, delta: Delta) -> bytes:
        """Return the chunks of one delta: one a kind, one a tool call.

        A chunk names each call once, as OpenAI's do: clients read the first entry, or the last.
        """
        found = b""
        if delta.reasoning:
            found = self._chunk(index, b'"reasoning_content":' + encode(delta.reasoning))
        if delta.content or delta.logprobs:
            logprobs = encode(Logprobs(_wire(delta.logprobs))) if delta.logprobs else b"null"
            found += self._chunk(index, b'"content":' + encode(delta.content), logprobs)
        for call in _joined(delta.calls):
            found += self._chunk(index, b'"tool_calls":[%b]' % _call(call))
        return found

    def closing(self, index: int, finish: Finish) -> bytes:
        """Return the chunk with the reason; the last one is in `ending`, with the times."""
        return self._chunk(index, b"", reason=encode(finish.reason)) if self._n > 1 else b""

    def ending(self, finishes: list[Finish]) -> bytes:
        """Return the last chunk, the one with the usage if wanted, and the end."""
        reason = encode(finishes[0].reason)
        choice = _choice(0, b"", reason=reason) if self._n == 1 else b""
        return self._envelope.end(choice, finishes)

    def error(self, error: EdgedError) -> bytes:
        """Return the error as the last event."""
        return sse(error)

    def _chunk(
        self, index: int, delta: bytes, logprobs: bytes = b"null", reason: bytes = b"null"
    ) -> bytes:
        return self._envelope.chunk(_choice(index, delta, logprobs, reason))


def _choice(index: int, delta: bytes, logprobs: bytes = b"null", reason: bytes = b"null") -> bytes:
    form = b'{"index":%d,"delta":{%b},"logprobs":%b,"finish_reason":%b}'
    return form % (index, delta, logprobs, reason)


def _joined(pieces: list[CallDelta]) -> list[CallDelta]:
    """Return the pieces with neighbours of one call made into one."""
    found = pieces[:1]
    for piece in pieces[1:]:
        last = found[-1]
        if piece.index == last.index:
            arguments = last.arguments + piece.arguments
            found[-1] = msgspec.structs.replace(last, arguments=arguments)
        else:
            found.append(piece)
    return found


def _call(call: CallDelta) -> bytes:
    if not call.name:
        return b'{"index":%d,"function":{"arguments":%b}}' % (call.index, encode(call.arguments))
    form = b'{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":%b}}'
    return form % (call.index, encode(call.id), encode(call.name), encode(call.arguments))


def _wire(chosen: list[Chosen]) -> list[TokenLogprob]:
    return [
        TokenLogprob(*_alternative(each), [Alternative(*_alternative(a)) for a in each.top])
        for each in chosen
    ]


def _alternative(likelihood: Likelihood) -> tuple[str, float, list[int]]:
    text = likelihood.text
    return text.decode("utf-8", "replace"), likelihood.logprob, list(text)
