"""Wire forms of the Responses API: what a reply says."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from edged import protocol
from edged.api.openai.usage import Timings
from edged.errors import EdgedError, InvalidRequest, QueueFull
from edged.protocol import Likelihood

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class Alternative(Struct):
    """A token and the natural logarithm of its probability."""

    token: str
    bytes: list[int]
    logprob: float


class Logprob(Alternative):
    """The chosen token, and what else was likely at its place."""

    top_logprobs: list[Alternative]


class ToldAlternative(Struct):
    """An alternative inside a stream's events, where OpenAI leaves the bytes out."""

    token: str
    logprob: float


class ToldLogprob(ToldAlternative):
    """A chosen token inside a stream's events."""

    top_logprobs: list[ToldAlternative]

    @classmethod
    def of(cls, whole: Logprob) -> ToldLogprob:
        """Return the shorter form of `whole`."""
        top = [ToldAlternative(each.token, each.logprob) for each in whole.top_logprobs]
        return cls(whole.token, whole.logprob, top)


class OutputText(Struct, tag_field="type", tag="output_text"):
    """The part of a message."""

    text: str
    logprobs: list[Logprob] = []
    annotations: list[Any] = []


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    """The part of a reasoning item."""

    text: str


class Message(Struct, tag_field="type", tag="message", kw_only=True):
    """What the model said."""

    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class Reasoning(Struct, tag_field="type", tag="reasoning", kw_only=True):
    """What it thought. `summary` is empty: nobody here makes one, and `content` is all of it."""

    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[ReasoningText]
    summary: list[Any] = []
    encrypted_content: str | UnsetType = UNSET


class FunctionCall(Struct, tag_field="type", tag="function_call", kw_only=True):
    """A call that the client should make: `arguments` is JSON text."""

    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    call_id: str
    name: str
    arguments: str


OutputItem = Reasoning | Message | FunctionCall


class InputDetails(Struct):
    """Of `usage`. Nothing is written to a cache that has a price."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(Struct):
    """Of `usage`."""

    reasoning_tokens: int


class Usage(Struct):
    """What a response took, in tokens."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: protocol.Usage) -> Usage:
        """Return the wire form of `usage`."""
        return cls(
            usage.prompt_tokens,
            InputDetails(usage.cached_tokens),
            usage.completion_tokens,
            OutputDetails(usage.reasoning_tokens),
            usage.prompt_tokens + usage.completion_tokens,
        )


class Problem(Struct):
    """Why a response failed: one of OpenAI's few codes, and our message."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str

    @classmethod
    def of(cls, error: EdgedError) -> Problem:
        """Return the wire form of `error`."""
        if isinstance(error, QueueFull):
            return cls("rate_limit_exceeded", error.message)
        asked_wrongly = isinstance(error, InvalidRequest)
        return cls("invalid_prompt" if asked_wrongly else "server_error", error.message)


class Incomplete(Struct):
    """Why a response ended before it was complete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Response(Struct, kw_only=True):
    """A response object: what was asked, as it was understood, and what came of it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status = "in_progress"
    background: bool
    completed_at: int | None = None
    error: Problem | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str = "default"
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str = "disabled"
    usage: Usage | None = None
    timings: Timings | UnsetType = UNSET
    user: str | None
    metadata: dict[str, str]


def logprobs_of(chosen: list[protocol.Chosen]) -> list[Logprob]:
    """Return the wire form of the tokens' likelihoods."""
    return [
        Logprob(*_alternative(each), [Alternative(*_alternative(a)) for a in each.top])
        for each in chosen
    ]


def _alternative(likelihood: Likelihood) -> tuple[str, list[int], float]:
    text = likelihood.text
    return text.decode("utf-8", "replace"), list(text), likelihood.logprob
