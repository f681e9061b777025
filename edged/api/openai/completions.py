"""`POST /v1/completions`: wire request → Generate, events → wire response."""

from __future__ import annotations

from typing import Any

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
from edged.api.openai.schema import Addressed, CompletionRequest
from edged.api.upstream import PassThrough
from edged.plan import ModelPlan
from edged.protocol import Delta, Finish, Generate, Text, Tokens

_DEFAULT_MAX_TOKENS = 16  # OpenAI's
_MAX_TOKEN_ID = 2**31 - 1


@post("/v1/completions", status_code=200)
async def create(request: Request[Any, Any, Any]) -> ASGIApp:
    """Continue a text, whole or streamed."""
    box, exchange = box_of(request), Exchange.of(request.scope)
    raw = await body.read_json(request, box.plan.config.server)
    plan = box.plan.resolve(body.convert(raw, Addressed).model)
    exchange.model = plan.model.name
    if plan.engine == "upstream":
        return PassThrough(request.app, plan, "/completions", raw)
    exchange.ignored_fields = parameters.check_names(raw, CompletionRequest)
    wire = body.convert(raw, CompletionRequest)
    parameters.check_common(wire, raw)
    exchange.stream = bool(wire.stream)
    generate = Generate(
        prompt=to_prompt(wire.prompt, plan.context),
        sampling=parameters.sampling(wire),
        max_tokens=_DEFAULT_MAX_TOKENS if wire.max_tokens is None else wire.max_tokens,
        stop=parameters.stops(wire),
    )
    reply = TextReply(plan, with_usage=parameters.wants_usage(wire))
    return Answer(box, plan.model.name, generate, reply, stream=exchange.stream)


def to_prompt(wire: Any, context: int) -> Text | Tokens:
    """Return the one prompt of a request: a string, token ids, or a list with one of these.

    Raises UnsupportedParameter for several prompts, ContextLengthExceeded for more ids than the
    model's context has tokens, and InvalidRequest for anything else.
    """
    if isinstance(wire, list) and wire and isinstance(wire[0], str | list):
        if len(wire) > 1:
            raise errors.UnsupportedParameter(
                "several prompts in one request are not supported by this version of edged; "
                "send one request for each",
                param="prompt",
            )
        wire = wire[0]
    if isinstance(wire, str) and wire:
        return Text(wire)
    if isinstance(wire, list) and len(wire) > context:  # here: millions would hold up the loop
        raise errors.ContextLengthExceeded(
            f"the prompt has {len(wire)} tokens, the context is {context} tokens", param="prompt"
        )
    if isinstance(wire, list) and wire and all(map(_is_token, wire)):
        return Tokens(wire)
    if wire in ("", []):
        raise errors.InvalidRequest("`prompt` is empty", param="prompt")
    raise errors.InvalidRequest(
        "`prompt`: expected a string or a list of token ids", param="prompt"
    )


def _is_token(value: Any) -> bool:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int and 0 <= value <= _MAX_TOKEN_ID


class Choice(Struct):
    """The one choice of a reply."""

    text: str
    finish_reason: str
    index: int = 0
    logprobs: None = None


class Completion(Whole, kw_only=True):
    """Body of a whole reply."""

    choices: list[Choice]


class TextReply:
    """Writes the reply to one text request; a text has no reasoning apart."""

    def __init__(self, plan: ModelPlan, *, with_usage: bool) -> None:
        self._envelope = Envelope(
            plan,
            prefix="cmpl",
            whole="text_completion",
            chunk="text_completion",
            with_usage=with_usage,
        )

    def whole(self, content: str, reasoning: str, finish: Finish) -> bytes:
        """Return the body of a whole reply."""
        choices = [Choice(reasoning + content, finish.reason)]
        return encode(Completion(**self._envelope.whole(finish), choices=choices))

    def opening(self) -> bytes:
        """Return nothing: the first chunk is the first text."""
        return b""

    def piece(self, delta: Delta) -> bytes:
        """Return the chunk of one delta."""
        text = delta.reasoning + delta.content
        return self._envelope.chunk(_choice(encode(text), b"null")) if text else b""

    def closing(self, finish: Finish) -> bytes:
        """Return the chunk with the reason, the one with the usage if wanted, and the end."""
        return self._envelope.end(_choice(b'""', encode(finish.reason)), finish)


def _choice(text: bytes, reason: bytes) -> bytes:
    return b'{"index":0,"text":%b,"logprobs":null,"finish_reason":%b}' % (text, reason)
