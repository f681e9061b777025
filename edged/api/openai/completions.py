"""`POST /v1/completions`: wire request → Generate, events → wire response."""

from __future__ import annotations

from typing import Any

from litestar import Request, post
from litestar.types import ASGIApp
from msgspec import Struct

from edged import errors
from edged.api import adapters, body, events
from edged.api.entry import Entry
from edged.api.error import sse
from edged.api.events import Answer
from edged.api.openai import parameters
from edged.api.openai.envelope import Envelope, Whole, encode
from edged.api.openai.schema import CompletionRequest
from edged.errors import EdgedError
from edged.plan import ModelPlan
from edged.protocol import Chosen, Delta, Finish, Generate, Text, Tokens

_DEFAULT_MAX_TOKENS = 16  # OpenAI's
_MAX_TOKEN_ID = 2**31 - 1


@post("/v1/completions", status_code=200)
async def create(request: Request[Any, Any, Any]) -> ASGIApp:
    """Continue texts, whole or streamed."""
    entry = await Entry.of(request)
    if (upstream := entry.upstream("/completions")) is not None:
        return upstream
    entry.exchange.ignored_fields = parameters.check_names(entry.raw, CompletionRequest)
    wire = body.convert(entry.raw, CompletionRequest)
    parameters.check_common(wire, entry.raw)
    n = wire.n or 1
    prompts = [
        adapters.dressed(entry, to_generate(wire, prompt), wire.lora)
        for prompt in to_prompts(wire, entry.plan.context)
    ]
    requests = parameters.several(prompts, n, entry.plan.model.sampling)
    reply = TextReply(
        entry.plan,
        n_choices=len(requests),
        n=n,
        with_usage=parameters.wants_usage(wire),
        logprobs=wire.logprobs is not None,
    )
    entry.exchange.stream = bool(wire.stream)
    return Answer(entry.box, entry.model, requests, reply, stream=bool(wire.stream), n=n)


def to_generate(wire: CompletionRequest, prompt: Text | Tokens) -> Generate:
    """Return the engine's form of one prompt of a request."""
    if wire.echo and wire.logprobs is not None:
        raise errors.UnsupportedParameter(
            "`echo` with `logprobs` would need those of the prompt, which are not computed; "
            "send one of them",
            param="echo",
        )
    if wire.echo and wire.suffix:
        raise errors.UnsupportedParameter(
            "`echo` with `suffix` is not supported; send one of them", param="echo"
        )
    return Generate(
        prompt=prompt,
        sampling=parameters.sampling(wire),
        max_tokens=_DEFAULT_MAX_TOKENS if wire.max_tokens is None else wire.max_tokens,
        stop=parameters.stops(wire),
        stop_tokens=wire.stop_token_ids or [],
        constraint=parameters.constraint(wire),
        logprobs=wire.logprobs,
        echo=bool(wire.echo),
    )


def to_prompts(wire: CompletionRequest, context: int) -> list[Text | Tokens]:
    """Return the prompts of a request: a string, token ids, or a list of these.

    Raises ContextLengthExceeded for more ids than the model's context has tokens, and
    InvalidRequest for anything that is no prompt.
    """
    prompt = wire.prompt
    several = isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list)
    if several and len(prompt) > parameters.MOST_CHOICES:
        raise errors.InvalidRequest(
            f"`prompt`: {len(prompt)} prompts, at most {parameters.MOST_CHOICES} are allowed",
            param="prompt",
        )
    found = [_to_prompt(each, context) for each in (prompt if several else [prompt])]
    if not wire.suffix:
        return found
    if not all(isinstance(each, Text) for each in found):
        raise errors.InvalidRequest("`suffix` needs a prompt of text", param="suffix")
    return [Text(each.text, wire.suffix) for each in found if isinstance(each, Text)]


def _to_prompt(wire: Any, context: int) -> Text | Tokens:
    if isinstance(wire, str) and wire:
        return Text(wire)
    if isinstance(wire, list) and len(wire) > context:  # here: millions would hold up the loop
        raise errors.ContextLengthExceeded(
            f"the prompt has {len(wire)} tokens; this model's maximum context length is "
            f"{context} tokens",
            param="prompt",
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


class Logprobs(Struct):
    """One entry a token in every list. `text_offset`: characters before it in the choice."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Choice(Struct):
    """One continuation of a reply."""

    text: str
    finish_reason: str
    index: int
    logprobs: Logprobs | None = None


class Completion(Whole, kw_only=True):
    """Body of a whole reply."""

    choices: list[Choice]


class TextReply:
    """Writes the reply to one text request; a text has no reasoning apart."""

    def __init__(
        self,
        plan: ModelPlan,
        *,
        n_choices: int = 1,
        n: int = 1,
        with_usage: bool,
        logprobs: bool = False,
    ) -> None:
        self._logprobs = logprobs
        self._n_choices = n_choices
        self._offsets = [0] * n_choices  # characters sent, of each choice
        self._envelope = Envelope(
            plan,
            prefix="cmpl",
            whole="text_completion",
            chunk="text_completion",
            with_usage=with_usage,
            n=n,
        )

    def whole(self, choices: list[events.Choice]) -> bytes:
        """Return the body of a whole reply."""
        envelope = self._envelope.whole([choice.finish for choice in choices])
        found = [
            Choice(
                said.reasoning + said.content,
                said.finish.reason,
                i,
                _wire(said.logprobs, 0) if self._logprobs else None,
            )
            for i, said in enumerate(choices)
        ]
        return encode(Completion(**envelope, choices=found))

    def opening(self, prompt_tokens: int) -> bytes:  # noqa: ARG002 - for dialects that tell it first
        """Return nothing: the first chunk is the first text."""
        return b""

    def piece(self, index: int, delta: Delta) -> bytes:
        """Return the chunk of one delta."""
        text = delta.reasoning + delta.content
        if not text and not delta.logprobs:
            return b""
        logprobs = b"null"
        if delta.logprobs:
            logprobs = encode(_wire(delta.logprobs, self._offsets[index]))
        self._offsets[index] += len(text)
        return self._envelope.chunk(_choice(index, encode(text), logprobs))

    def closing(self, index: int, finish: Finish) -> bytes:
        """Return the chunk with the reason; the last one is in `ending`, with the times."""
        if self._n_choices == 1:
            return b""
        return self._envelope.chunk(_choice(index, b'""', reason=encode(finish.reason)))

    def ending(self, finishes: list[Finish]) -> bytes:
        """Return the last chunk, the one with the usage if wanted, and the end."""
        alone = self._n_choices == 1
        choice = _choice(0, b'""', reason=encode(finishes[0].reason)) if alone else b""
        return self._envelope.end(choice, finishes)

    def error(self, error: EdgedError) -> bytes:
        """Return the error as the last event."""
        return sse(error)


def _choice(index: int, text: bytes, logprobs: bytes = b"null", reason: bytes = b"null") -> bytes:
    form = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}'
    return form % (index, text, logprobs, reason)


def _wire(chosen: list[Chosen], offset: int) -> Logprobs:
    found = Logprobs([], [], [], [])
    for each in chosen:
        text = each.text.decode("utf-8", "replace")
        found.tokens.append(text)
        found.token_logprobs.append(each.logprob)
        top = {a.text.decode("utf-8", "replace"): a.logprob for a in each.top}
        found.top_logprobs.append(top)
        found.text_offset.append(offset)
        offset += len(text)
    return found
