"""`POST /v1/completions`: wire request → Generate, events → wire response."""

from __future__ import annotations

import secrets
import time
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
from edged.api.openai.schema import Addressed, CompletionRequest
from edged.api.openai.usage import Timings, Usage, fingerprint
from edged.api.upstream import PassThrough
from edged.plan import ModelPlan
from edged.protocol import Delta, Finish, Generate, Text, Tokens

_DEFAULT_MAX_TOKENS = 16  # OpenAI's
_MAX_TOKEN_ID = 2**31 - 1

_encode = msgspec.json.Encoder().encode


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


class Completion(Struct):
    """Body of a whole reply."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    timings: Timings
    object: str = "text_completion"


class TextReply:
    """Writes the reply to one text request; chunks are put together from encoded pieces."""

    def __init__(self, plan: ModelPlan, *, with_usage: bool) -> None:
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = plan.model.name
        self._fingerprint = fingerprint(plan)
        self._with_usage = with_usage
        self._head = b"".join(
            [
                b'data: {"id":"%b","object":"text_completion"' % self._id.encode(),
                b',"created":%d,"model":%b' % (self._created, _encode(self._model)),
                b',"system_fingerprint":%b,"choices":[' % _encode(self._fingerprint),
            ]
        )
        self._open = self._head + b'{"index":0,"text":'
        usage = b',"usage":null' if with_usage else b""
        self._shut = b',"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"

    def whole(self, content: str, reasoning: str, finish: Finish) -> bytes:
        """Return the body of a whole reply; a text has no reasoning apart."""
        return _encode(
            Completion(
                id=self._id,
                created=self._created,
                model=self._model,
                system_fingerprint=self._fingerprint,
                choices=[Choice(reasoning + content, finish.reason)],
                usage=Usage.of(finish.usage),
                timings=Timings.of(finish),
            )
        )

    def opening(self) -> bytes:
        """Return nothing: the first chunk is the first text."""
        return b""

    def piece(self, delta: Delta) -> bytes:
        """Return the chunk of one delta."""
        text = delta.reasoning + delta.content
        return self._open + _encode(text) + self._shut if text else b""

    def closing(self, finish: Finish) -> bytes:
        """Return the chunk with the reason, the one with the usage if wanted, and the end."""
        parts = [
            self._open,
            b'"","logprobs":null,"finish_reason":"%b"}]' % finish.reason.encode(),
            b',"usage":null' if self._with_usage else b"",
            b',"timings":%b}\n\n' % _encode(Timings.of(finish)),
        ]
        if self._with_usage:
            parts += [self._head, b'],"usage":%b}\n\n' % _encode(Usage.of(finish.usage))]
        return b"".join([*parts, b"data: [DONE]\n\n"])
