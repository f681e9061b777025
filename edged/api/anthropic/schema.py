"""Wire forms of Anthropic's messages: what a request may say.

Types and ranges are strict, unknown fields pass. `null` for an optional field means the same as
leaving it out. `cache_control` asks for nothing: prefixes are shared without being told.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from edged.api.adapters import Lora
from edged.api.entry import Addressed
from edged.api.openai.schema import Positive, StopString

_MAX_INT32 = 2**31 - 1

# Known names that edged does not honour, each with the values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...] | None] = {
    "billing_policy": (),
    "compaction": (),
    "container": (),
    "context_management": (
        {},
        {"edits": []},
        {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},  # Claude Code's
    ),
    "diagnostics": ({"previous_message_id": None},),
    "fallback_credit_token": (),
    "fallbacks": ([],),
    "inference_geo": (),
    "mcp_servers": ([],),
    "speed": ("standard",),
    "thread": (),
    "user_profile_id": (),
    "workspace_id": (),
}


class CacheControl(Struct, kw_only=True):
    """Where a prefix to be kept ends."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Cacheable(Struct, kw_only=True):
    """What every block and tool may say."""

    cache_control: CacheControl | None = None


class Citations(Struct, kw_only=True):
    """Whether answers shall cite a document; only `false` can be honoured."""

    enabled: bool | None = None


# ── content blocks ──


class Text(Cacheable, tag_field="type", tag="text", kw_only=True):
    """Text."""

    text: str


class Thinking(Struct, tag_field="type", tag="thinking", kw_only=True):
    """What the assistant thought; the signature is not looked at."""

    thinking: str
    signature: str | None = None


class RedactedThinking(Struct, tag_field="type", tag="redacted_thinking", kw_only=True):
    """Thoughts that only Anthropic can read: left out."""

    data: str | None = None


class ToolUse(Cacheable, tag_field="type", tag="tool_use", kw_only=True):
    """An earlier tool call of the assistant."""

    id: str
    name: str
    input: dict[str, Any]


class TextSource(Struct, tag_field="type", tag="text", kw_only=True):
    """A document's text."""

    data: str
    media_type: Literal["text/plain"] = "text/plain"


class ContentSource(Struct, tag_field="type", tag="content", kw_only=True):
    """A document made of blocks."""

    content: str | list[Text | Image]


class Base64Source(Struct, tag_field="type", tag="base64"):
    """Known, and refused by name."""


class Base64Image(Struct, tag_field="type", tag="base64", kw_only=True):
    """An image's file."""

    data: str
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]


class UrlSource(Struct, tag_field="type", tag="url", kw_only=True):
    """Where an image is; documents are not fetched."""

    url: str


class FileSource(Struct, tag_field="type", tag="file"):
    """Known, and refused by name."""


class Image(Cacheable, tag_field="type", tag="image", kw_only=True):
    """An image, for models that take them."""

    source: Base64Image | UrlSource | FileSource


class Document(Cacheable, tag_field="type", tag="document", kw_only=True):
    """A document; its text is honoured."""

    source: TextSource | ContentSource | Base64Source | UrlSource | FileSource
    title: str | None = None
    context: str | None = None
    citations: Citations | None = None


class SearchResult(Cacheable, tag_field="type", tag="search_result", kw_only=True):
    """A passage that a search of the client found."""

    source: str
    title: str
    content: list[Text]
    citations: Citations | None = None


class ToolReference(Struct, tag_field="type", tag="tool_reference"):
    """Known, and refused by name."""


class ServerToolUse(Struct, tag_field="type", tag="server_tool_use"):
    """Known, and refused by name."""


class WebSearchResult(Struct, tag_field="type", tag="web_search_tool_result"):
    """Known, and refused by name."""


class WebFetchResult(Struct, tag_field="type", tag="web_fetch_tool_result"):
    """Known, and refused by name."""


class CodeExecutionResult(Struct, tag_field="type", tag="code_execution_tool_result"):
    """Known, and refused by name."""


class ToolSearchResult(Struct, tag_field="type", tag="tool_search_tool_result"):
    """Known, and refused by name."""


class McpToolUse(Struct, tag_field="type", tag="mcp_tool_use"):
    """Known, and refused by name."""


class McpToolResult(Struct, tag_field="type", tag="mcp_tool_result"):
    """Known, and refused by name."""


class ContainerUpload(Struct, tag_field="type", tag="container_upload"):
    """Known, and refused by name."""


class ToolResult(Cacheable, tag_field="type", tag="tool_result", kw_only=True):
    """What a tool of the client returned."""

    tool_use_id: str
    content: str | list[Text | SearchResult | Document | Image | ToolReference] | None = None
    is_error: bool | None = None


Block = (
    Text
    | Thinking
    | RedactedThinking
    | ToolUse
    | ToolResult
    | Document
    | SearchResult
    | Image
    | ToolReference
    | ServerToolUse
    | WebSearchResult
    | WebFetchResult
    | CodeExecutionResult
    | ToolSearchResult
    | McpToolUse
    | McpToolResult
    | ContainerUpload
)


class Message(Struct, kw_only=True):
    """One turn, or a part of one. `system`: instructions from here on."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


# ── tools ──


class Tool(Cacheable, kw_only=True):
    """A tool that the client runs. Tools of Anthropic's own have another `type`."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    input_examples: list[dict[str, Any]] | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None  # input always flows as it comes
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None


class AutoChoice(Struct, tag_field="type", tag="auto", kw_only=True):
    """The model decides."""

    disable_parallel_tool_use: bool | None = None


class AnyChoice(Struct, tag_field="type", tag="any", kw_only=True):
    """Some tool must be called."""

    disable_parallel_tool_use: bool | None = None


class ToolChoice(Struct, tag_field="type", tag="tool", kw_only=True):
    """This tool must be called."""

    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(Struct, tag_field="type", tag="none"):
    """No tool may be called."""


# ── the rest ──


class Enabled(Struct, tag_field="type", tag="enabled", kw_only=True):
    """Think, in so many tokens at most."""

    budget_tokens: Positive
    display: Literal["summarized", "omitted"] | None = None


class Adaptive(Struct, tag_field="type", tag="adaptive", kw_only=True):
    """Think as long as it takes."""

    display: Literal["summarized", "omitted"] | None = None


class Disabled(Struct, tag_field="type", tag="disabled"):
    """Do not think."""


class BetweenTools(Struct, tag_field="type", tag="between_tools"):
    """Known, and refused by name."""


class JsonFormat(Struct, kw_only=True):
    """The answer is JSON of this schema."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, kw_only=True):
    """How the answer shall be."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class Metadata(Struct, kw_only=True):
    """Accepted, kept nowhere."""

    user_id: str | None = None


class Prompted(Addressed, kw_only=True):
    """What `/v1/messages` and `/v1/messages/count_tokens` have in common."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    system: str | list[Text] | None = None
    tools: list[Tool] | None = None
    tool_choice: AutoChoice | AnyChoice | ToolChoice | NoChoice | None = None
    thinking: Enabled | Adaptive | Disabled | BetweenTools | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    cache_control: CacheControl | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesRequest(Prompted, kw_only=True):
    """Body of `POST /v1/messages`. The last five are edged's own."""

    max_tokens: Positive
    stop_sequences: Annotated[list[StopString], Meta(max_length=64)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=_MAX_INT32)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] | None = None
    ignore_eos: bool | None = None
    lora: Lora | None = None
