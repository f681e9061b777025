"""Wire forms of the Responses API: what a request may say.

Types and ranges are strict, unknown fields pass. Items are also stored in these forms, filled up
by `items.kept`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from edged import errors
from edged.api.openai.schema import Common, Positive
from edged.api.openai.schema import InputAudio as AudioData
from edged.api.openai.tools import Name

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Role = Literal["user", "system", "developer", "assistant"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
Short = Annotated[str, Meta(max_length=512)]
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


# ── items ──


class InputText(Struct, tag_field="type", tag="input_text"):
    """Text for the model."""

    text: str


class InputImage(Struct, tag_field="type", tag="input_image", kw_only=True):
    """An image: a `data:` URL, or an `https:` URL where the box may fetch."""

    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["low", "high", "auto", "original"] | None = "auto"


class InputAudio(Struct, tag_field="type", tag="input_audio"):
    """A sound."""

    input_audio: AudioData


class InputFile(Struct, tag_field="type", tag="input_file", kw_only=True):
    """A file. Text files are read, others refused."""

    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None


class OutputText(Struct, tag_field="type", tag="output_text"):
    """What the model said before."""

    text: str
    annotations: list[Any] = []
    logprobs: list[Any] | None = None


class Refusal(Struct, tag_field="type", tag="refusal"):
    """How the model declined before."""

    refusal: str


InputPart = InputText | InputImage | InputAudio | InputFile
Part = InputPart | OutputText | Refusal


class Message(Struct, tag_field="type", tag="message", kw_only=True):
    """One turn of a conversation."""

    role: Role
    content: str | list[Part]
    id: str | None = None
    status: ItemStatus | None = None


class FunctionCall(Struct, tag_field="type", tag="function_call", kw_only=True):
    """A call that the model made before: `arguments` is JSON in a string."""

    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None


class FunctionCallOutput(Struct, tag_field="type", tag="function_call_output", kw_only=True):
    """What a function returned."""

    call_id: str
    output: str | list[InputPart]
    id: str | None = None
    status: ItemStatus | None = None


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    """What the model thought."""

    text: str


class SummaryText(Struct, tag_field="type", tag="summary_text"):
    """What another server made of it."""

    text: str


class Reasoning(Struct, tag_field="type", tag="reasoning", kw_only=True):
    """What the model thought before it answered."""

    id: str | None = None
    summary: list[SummaryText] = []
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    status: ItemStatus | None = None


class ItemReference(Struct, tag_field="type", tag="item_reference"):
    """An item of an earlier, stored response."""

    id: str


Item = Message | FunctionCall | FunctionCallOutput | Reasoning | ItemReference
ITEM_TYPES = {kind.__struct_config__.tag for kind in Item.__args__}

# Items of tools that run at OpenAI.
REFUSED_ITEMS = frozenset(
    f"{kind}{end}"
    for kind in (
        "apply_patch_call",
        "code_interpreter_call",
        "compaction",
        "computer_call",
        "custom_tool_call",
        "file_search_call",
        "image_generation_call",
        "local_shell_call",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "shell_call",
        "tool_search_call",
        "tool_search",
        "web_search_call",
    )
    for end in ("", "_output")
)


# ── the request ──


class Tool(Struct, kw_only=True):
    """A function that the client runs; in this dialect its facts stand beside its type."""

    type: str
    name: Name | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Format(Struct, kw_only=True):
    """Of `text`: what the answer looks like."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextOptions(Struct, kw_only=True):
    """Of the answer's text."""

    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Struct, kw_only=True):
    """How much the model should think."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseRequest(Common, kw_only=True):
    """Body of `POST /v1/responses`, and of `/v1/responses/input_tokens`."""

    input: str | list[Item] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[Tool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    store: bool | None = None
    background: bool | None = None
    max_output_tokens: Positive | None = None
    max_tool_calls: Positive | None = None
    include: list[Includable] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    metadata: Annotated[dict[str, Short], Meta(max_length=16)] | None = None
    service_tier: (
        Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None
    ) = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None


# Known names that cannot be honoured, with the values that ask for nothing, and what to do.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "access_programs": ((), "leave it out"),
    "background_options": ((), "leave it out"),
    "context_management": (([],), "shorten the conversation yourself"),
    "conversation": ((), "go on with `previous_response_id`"),
    "image": ((), "leave it out"),
    "moderation": ((), "leave it out"),
    "personality": ((), "say it in `instructions`"),
    "prompt": ((), "send `instructions` and `input`"),
    "prompt_cache_options": ((), "leave it out"),
    # the other endpoints' words for what this one calls differently
    "max_completion_tokens": ((), "use `max_output_tokens`"),
    "max_tokens": ((), "use `max_output_tokens`"),
    "messages": ((), "use `input`"),
    "n": ((1,), "send the request n times"),
    "logprobs": ((False,), 'use `include: ["message.output_text.logprobs"]`'),
    "reasoning_effort": ((), "use `reasoning.effort`"),
    "response_format": (({"type": "text"},), "use `text.format`"),
}
HONOURED = frozenset(ResponseRequest.__struct_fields__) - REFUSED.keys()


def check_names(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return `raw` without the names that are refused here; they asked for nothing.

    Raises UnsupportedParameter for one that asks for something.
    """
    for name, (neutral, instead) in REFUSED.items():
        value = raw.get(name)
        if value is not None and not any(
            value == each and type(value) is type(each) for each in neutral
        ):
            raise errors.UnsupportedParameter(
                f"`{name}` is not supported by /v1/responses; {instead}", param=name
            )
    return {name: value for name, value in raw.items() if name not in REFUSED}
