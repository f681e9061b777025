"""Events → the reply of `/v1/messages`, whole and streamed."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from msgspec import Struct

from edged import protocol
from edged.api import error as api_error
from edged.api import events
from edged.errors import EdgedError
from edged.protocol import CallDelta, Delta, Finish

encode = msgspec.json.Encoder().encode

# Clients send thoughts back only together with a signature. It signs nothing and is not checked.
SIGNATURE = "edged"

_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


class TextBlock(Struct, tag_field="type", tag="text"):
    """What the model says."""

    text: str
    citations: None = None


class ThinkingBlock(Struct, tag_field="type", tag="thinking"):
    """What the model thought before."""

    thinking: str
    signature: str = SIGNATURE


class ToolUseBlock(Struct, tag_field="type", tag="tool_use"):
    """A call that the client should make. `input` is a JSON object."""

    id: str
    name: str
    input: msgspec.Raw


class OutputDetails(Struct):
    """Of `usage.output_tokens_details`."""

    thinking_tokens: int


class Usage(Struct):
    """Tokens: of the prompt those that were computed and those that were still in memory."""

    input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputDetails
    cache_creation_input_tokens: int = 0

    @classmethod
    def of(cls, usage: protocol.Usage) -> Usage:
        """Return the wire form of `usage`."""
        return cls(
            usage.prompt_tokens - usage.cached_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            OutputDetails(usage.reasoning_tokens),
        )


class Message(Struct, kw_only=True):
    """Body of a whole reply, and, still empty, what a stream starts with."""

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[ThinkingBlock | TextBlock | ToolUseBlock]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: Usage


class MessagesReply:
    """Writes the reply to one request. The blocks of a stream are open one at a time."""

    def __init__(
        self, model: str, *, request_id: str, max_tokens: int, omit_thinking: bool = False
    ) -> None:
        """`model`: the name to be told; `omit_thinking`: thinking blocks come without text."""
        self._id = f"msg_{secrets.token_hex(12)}"
        self._model = model
        self._request_id = request_id
        self._max_tokens = max_tokens
        self._omit_thinking = omit_thinking
        self._block = -1  # number of the last block that was opened
        self._open: str | int | None = None  # its kind, or the number of its call

    def whole(self, choices: list[events.Choice]) -> bytes:
        """Return the body of the reply that is not streamed."""
        said = choices[0]
        content: list[ThinkingBlock | TextBlock | ToolUseBlock] = []
        if said.reasoning:
            content.append(ThinkingBlock("" if self._omit_thinking else said.reasoning))
        if said.content:
            content.append(TextBlock(said.content))
        content += [ToolUseBlock(c.id, c.name, _object(c.arguments)) for c in said.calls]
        return encode(
            Message(
                id=self._id,
                model=self._model,
                content=content,
                stop_reason=self._stop_reason(said.finish),
                stop_sequence=said.finish.stop,
                usage=Usage.of(said.finish.usage),
            )
        )

    def opening(self, prompt_tokens: int) -> bytes:
        """Return the start of the message; what was cached is known at its end only."""
        usage = Usage.of(protocol.Usage(prompt_tokens=prompt_tokens))
        message = Message(id=self._id, model=self._model, content=[], usage=usage)
        return _event(b"message_start", b'"message":' + encode(message)) + _PING

    def piece(self, index: int, delta: Delta) -> bytes:  # noqa: ARG002 - there is one answer
        """Return the events of one delta: blocks begin and end as its kind changes."""
        parts: list[bytes] = []
        if delta.reasoning:
            self._turn_to("thinking", b'"type":"thinking","thinking":"","signature":""', parts)
            if not self._omit_thinking:
                parts.append(self._delta(b"thinking_delta", b"thinking", delta.reasoning))
        if delta.content:
            self._turn_to("text", b'"type":"text","text":"","citations":null', parts)
            parts.append(self._delta(b"text_delta", b"text", delta.content))
        for call in delta.calls:
            self._turn_to(call.index, _tool_use(call), parts)
            if call.arguments:
                parts.append(self._delta(b"input_json_delta", b"partial_json", call.arguments))
        return b"".join(parts)

    def closing(self, index: int, finish: Finish) -> bytes:  # noqa: ARG002
        """Return the end of the last block."""
        parts: list[bytes] = []
        self._shut(parts)
        return b"".join(parts)

    def ending(self, finishes: list[Finish]) -> bytes:
        """Return why the message ended and what it cost, and its end."""
        finish = finishes[0]
        delta: dict[str, Any] = {
            "stop_reason": self._stop_reason(finish),
            "stop_sequence": finish.stop,
        }
        body = b'"delta":%b,"usage":%b' % (encode(delta), encode(Usage.of(finish.usage)))
        return _event(b"message_delta", body) + _STOP

    def error(self, error: EdgedError) -> bytes:
        """Return the error as the last event."""
        return api_error.ANTHROPIC.sse(error, self._request_id)

    def _turn_to(self, kind: str | int, block: bytes, parts: list[bytes]) -> None:
        """Make a block of this kind, or of this call, the open one."""
        if kind == self._open:
            return
        self._shut(parts)
        self._block += 1
        self._open = kind
        body = b'"index":%d,"content_block":{%b}' % (self._block, block)
        parts.append(_event(b"content_block_start", body))

    def _shut(self, parts: list[bytes]) -> None:
        if self._open is None:
            return
        if self._open == "thinking":
            parts.append(self._delta(b"signature_delta", b"signature", SIGNATURE))
        parts.append(_event(b"content_block_stop", b'"index":%d' % self._block))
        self._open = None

    def _delta(self, kind: bytes, field: bytes, text: str) -> bytes:
        form = b'"index":%d,"delta":{"type":"%b","%b":%b}'
        return _event(b"content_block_delta", form % (self._block, kind, field, encode(text)))

    def _stop_reason(self, finish: Finish) -> str:
        if finish.reason == "tool_calls":
            return "tool_use"
        if finish.reason == "stop":
            return "end_turn" if finish.stop is None else "stop_sequence"
        used_up = finish.usage.completion_tokens >= self._max_tokens
        return "max_tokens" if used_up else "model_context_window_exceeded"


def _event(name: bytes, fields: bytes) -> bytes:
    return b'event: %b\ndata: {"type":"%b",%b}\n\n' % (name, name, fields)


def _tool_use(call: CallDelta) -> bytes:
    form = b'"type":"tool_use","id":%b,"name":%b,"input":{}'
    return form % (encode(call.id), encode(call.name))


def _object(arguments: str) -> msgspec.Raw:
    """Return the JSON text of a call if it is an object; one that was cut off becomes empty."""
    try:
        is_object = isinstance(msgspec.json.decode(arguments), dict)
    except (msgspec.MsgspecError, RecursionError):
        is_object = False
    return msgspec.Raw(arguments.encode() if is_object else b"{}")
