"""Wire forms of OpenAI's chat and text completions: what a request may say.

Types and ranges are strict, unknown fields pass (`parameters.py` tells which are refused).
`null` for an optional field means the same as leaving it out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from edged.api.adapters import Lora
from edged.api.entry import Addressed
from edged.api.openai.formats import StructuredOutputs
from edged.api.openai.tools import FunctionTool

_MAX_INT32 = 2**31 - 1

Positive = Annotated[int, Meta(ge=1, le=_MAX_INT32)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
StopString = Annotated[str, Meta(min_length=1)]
StopStrings = Annotated[list[StopString], Meta(max_length=4)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class StreamOptions(Struct, kw_only=True):
    """Of `stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Common(Addressed, kw_only=True):
    """What chat and text completions have in common."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopString | StopStrings | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Positive | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_MAX_INT32)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    typical_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=_MAX_INT32)] | None = None
    stop_token_ids: Annotated[list[int], Meta(max_length=64)] | None = None
    dry_multiplier: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    dry_base: Annotated[float, Meta(ge=1.0, le=100.0)] | None = None
    dry_allowed_length: Annotated[int, Meta(ge=0, le=_MAX_INT32)] | None = None
    dry_penalty_last_n: Annotated[int, Meta(ge=-1, le=_MAX_INT32)] | None = None
    dry_sequence_breakers: Annotated[list[StopString], Meta(max_length=64)] | None = None
    xtc_probability: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    xtc_threshold: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    response_format: Any = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    lora: Lora | None = None
    user: str | None = None


# ── chat ──


class TextPart(Struct, tag_field="type", tag="text"):
    """Text inside a message."""

    text: str


class ImageUrl(Struct):
    """A `data:` URL, or an `https:` URL where the box may fetch."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Struct, tag_field="type", tag="image_url"):
    """An image inside a message."""

    image_url: ImageUrl


class InputAudio(Struct):
    """A sound in base64; `wav` is read."""

    data: str
    format: str


class AudioPart(Struct, tag_field="type", tag="input_audio"):
    """A sound inside a message."""

    input_audio: InputAudio


class FileContent(Struct):
    """A `data:` URL of text; stored files are refused."""

    file_data: str | None = None
    filename: str | None = None
    file_id: str | None = None


class FilePart(Struct, tag_field="type", tag="file"):
    """A text file inside a message."""

    file: FileContent


class RefusalPart(Struct, tag_field="type", tag="refusal"):
    """What an assistant said when it declined."""

    refusal: str


Part = TextPart | ImagePart | AudioPart | FilePart | RefusalPart
Content = str | Annotated[list[Part], Meta(min_length=1)]


class System(Struct, tag_field="role", tag="system", kw_only=True):
    """Instructions."""

    content: Content
    name: str | None = None


class Developer(Struct, tag_field="role", tag="developer", kw_only=True):
    """Instructions, in OpenAI's newer word."""

    content: Content
    name: str | None = None


class User(Struct, tag_field="role", tag="user", kw_only=True):
    """What the user says."""

    content: Content
    name: str | None = None


class FunctionCall(Struct, kw_only=True):
    """Of an earlier tool call: `arguments` is JSON in a string."""

    name: str
    arguments: str


class ToolCall(Struct, kw_only=True):
    """An earlier tool call of the assistant."""

    function: FunctionCall
    id: str | None = None
    type: Literal["function"] = "function"


class Assistant(Struct, tag_field="role", tag="assistant", kw_only=True):
    """What the model said before."""

    content: Content | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None
    audio: Any = None
    function_call: Any = None


class Tool(Struct, tag_field="role", tag="tool", kw_only=True):
    """What a tool returned."""

    content: Content
    tool_call_id: str | None = None
    name: str | None = None


Message = System | Developer | User | Assistant | Tool


class ChatRequest(Common, kw_only=True):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Positive | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    reasoning_effort: Effort | None = None
    thinking_budget_tokens: Annotated[int, Meta(ge=-1, le=_MAX_INT32)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


# ── text ──


class CompletionRequest(Common, kw_only=True):
    """Body of `POST /v1/completions`. `prompt` has more shapes than a type can say."""

    prompt: Any
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
