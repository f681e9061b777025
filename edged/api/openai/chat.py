"""`POST /v1/chat/completions`: wire request → Generate, events → wire response."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, post
from litestar.types import ASGIApp
from msgspec import Struct

from edged import errors
from edged.api import body
from edged.api.box import box_of
from edged.api.events import Answer
from edged.api.exchange import Exchange
from edged.api.openai import parameters
from edged.api.openai.envelope import Envelope, Whole, encode
from edged.api.openai.schema import (
    Addressed,
    Assistant,
    ChatRequest,
    Content,
    Message,
    RefusalPart,
    TextPart,
    Tool,
    ToolCall,
)
from edged.api.upstream import PassThrough
from edged.plan import ModelPlan
from edged.protocol import Delta, Finish, Generate, Messages


@post("/v1/chat/completions", status_code=200)
async def create(request: Request[Any, Any, Any]) -> ASGIApp:
    """Answer a conversation, whole or streamed."""
    box, exchange = box_of(request), Exchange.of(request.scope)
    raw = await body.read_json(request, box.plan.config.server)
    plan = box.plan.resolve(body.convert(raw, Addressed).model)
    exchange.model = plan.model.name
    if plan.engine == "upstream":
        return PassThrough(request.app, plan, "/chat/completions", raw)
    exchange.ignored_fields = parameters.check_names(raw, ChatRequest)
    wire = body.convert(raw, ChatRequest)
    parameters.check_common(wire, raw)
    exchange.stream = bool(wire.stream)
    generate = Generate(
        prompt=Messages(
            messages=[to_template(message, i) for i, message in enumerate(wire.messages)],
            template_kwargs=wire.chat_template_kwargs or {},
        ),
        sampling=parameters.sampling(wire),
        max_tokens=_max_tokens(wire),
        stop=parameters.stops(wire),
    )
    reply = ChatReply(plan, with_usage=parameters.wants_usage(wire))
    return Answer(box, plan.model.name, generate, reply, stream=exchange.stream)


def _max_tokens(wire: ChatRequest) -> int | None:
    if None not in (wire.max_tokens, wire.max_completion_tokens) and (
        wire.max_tokens != wire.max_completion_tokens
    ):
        raise errors.InvalidRequest(
            "`max_tokens` and `max_completion_tokens` mean the same and differ",
            param="max_completion_tokens",
        )
    return wire.max_tokens if wire.max_completion_tokens is None else wire.max_completion_tokens


# ── messages ──


def to_template(message: Message, index: int) -> dict[str, Any]:
    """Return the wire message as chat templates read it: content is one string.

    Raises UnsupportedParameter or InvalidRequest, with `messages[index]…` as param.
    """
    where = f"messages[{index}]"
    if isinstance(message, Assistant):
        return _assistant(message, where)
    tag = message.__struct_config__.tag
    role = "system" if tag == "developer" else tag  # templates know the older word
    found: dict[str, Any] = {"role": role, "content": _text(message.content, where)}
    if message.name is not None:
        found["name"] = message.name
    if isinstance(message, Tool) and message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    return found


def _assistant(message: Assistant, where: str) -> dict[str, Any]:
    for name in ("audio", "function_call"):
        if getattr(message, name) is not None:
            raise errors.UnsupportedParameter(
                f"`{where}.{name}` is not supported; use text and `tool_calls`",
                param=f"{where}.{name}",
            )
    said = message.content if message.content is not None else message.refusal
    if said is None and not message.tool_calls and message.reasoning_content is None:
        raise errors.InvalidRequest(
            f"`{where}.content` is missing; only a message with `tool_calls` may leave it out",
            param=f"{where}.content",
        )
    found: dict[str, Any] = {
        "role": "assistant",
        "content": "" if said is None else _text(said, where),
    }
    if message.name is not None:
        found["name"] = message.name
    if message.reasoning_content is not None:
        found["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        found["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return found


def _tool_call(call: ToolCall) -> dict[str, Any]:
    """Return the call with its arguments as an object, which is what templates expect."""
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}")
    except (msgspec.MsgspecError, RecursionError):
        arguments = call.function.arguments
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _text(content: Content, where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, RefusalPart):
            texts.append(part.refusal)
        else:
            kind = part.__struct_config__.tag
            raise errors.UnsupportedParameter(
                f"parts of type `{kind}` are not supported by this model; send text",
                param=f"{where}.content[{i}]",
            )
    return "\n".join(texts)


# ── replies ──


class ReplyMessage(Struct, omit_defaults=False):
    """The answer."""

    content: str
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    role: str = "assistant"
    refusal: None = None


class Choice(Struct):
    """The one choice of a reply."""

    message: ReplyMessage
    finish_reason: str
    index: int = 0
    logprobs: None = None


class ChatCompletion(Whole, kw_only=True):
    """Body of a whole reply."""

    choices: list[Choice]


class ChatReply:
    """Writes the reply to one chat request."""

    _OPEN = b'{"index":0,"delta":{'
    _SHUT = b'},"logprobs":null,"finish_reason":null}'

    def __init__(self, plan: ModelPlan, *, with_usage: bool) -> None:
        self._envelope = Envelope(
            plan,
            prefix="chatcmpl",
            whole="chat.completion",
            chunk="chat.completion.chunk",
            with_usage=with_usage,
        )

    def whole(self, content: str, reasoning: str, finish: Finish) -> bytes:
        """Return the body of a whole reply."""
        message = ReplyMessage(content, reasoning or msgspec.UNSET)
        choices = [Choice(message, finish.reason)]
        return encode(ChatCompletion(**self._envelope.whole(finish), choices=choices))

    def opening(self) -> bytes:
        """Return the chunk that carries the role."""
        return self._chunk(b'"role":"assistant","content":"","refusal":null')

    def piece(self, delta: Delta) -> bytes:
        """Return the chunk, or the two, of one delta."""
        found = b""
        if delta.reasoning:
            found = self._chunk(b'"reasoning_content":' + encode(delta.reasoning))
        if delta.content:
            found += self._chunk(b'"content":' + encode(delta.content))
        return found

    def closing(self, finish: Finish) -> bytes:
        """Return the chunk with the reason, the one with the usage if wanted, and the end."""
        reason = encode(finish.reason)
        choice = self._OPEN + b'},"logprobs":null,"finish_reason":%b}' % reason
        return self._envelope.end(choice, finish)

    def _chunk(self, delta: bytes) -> bytes:
        return self._envelope.chunk(self._OPEN + delta + self._SHUT)
