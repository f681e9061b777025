"""`POST /v1/chat/completions`: wire request → Generate. The way back is in `chat_reply.py`."""

from __future__ import annotations

from typing import Any

from litestar import Request, post
from litestar.types import ASGIApp

from edged import errors
from edged.api import adapters, body, media
from edged.api.entry import Entry, differs
from edged.api.events import Answer
from edged.api.openai import parameters
from edged.api.openai.chat_reply import ChatReply
from edged.api.openai.schema import (
    Assistant,
    AudioPart,
    ChatRequest,
    Content,
    FilePart,
    ImagePart,
    Message,
    Part,
    RefusalPart,
    TextPart,
    Tool,
    ToolCall,
)
from edged.api.openai.tools import arguments_of, to_choice, to_tools
from edged.protocol import Generate, Messages, ToolChoice


@post("/v1/chat/completions", status_code=200)
async def create(request: Request[Any, Any, Any]) -> ASGIApp:
    """Answer a conversation, whole or streamed."""
    entry = await Entry.of(request)
    if (upstream := entry.upstream("/chat/completions")) is not None:
        return upstream
    wire = read(entry)
    n = wire.n or 1
    reply = ChatReply(
        entry.plan, n=n, with_usage=parameters.wants_usage(wire), logprobs=bool(wire.logprobs)
    )
    generate = adapters.dressed(entry, to_generate(wire), wire.lora)
    generate = await media.loaded(entry, generate, times=n)
    requests = parameters.several([generate], n, entry.plan.model.sampling)
    entry.exchange.stream = bool(wire.stream)
    return Answer(entry.box, entry.model, requests, reply, stream=bool(wire.stream), n=n)


def read(entry: Entry) -> ChatRequest:
    """Return the request of a conversation; raises for what cannot be honoured."""
    entry.exchange.ignored_fields = parameters.check_names(entry.raw, ChatRequest)
    wire = body.convert(entry.raw, ChatRequest)
    parameters.check_common(wire, entry.raw)
    return wire


def to_generate(wire: ChatRequest) -> Generate:
    """Return the engine's form of a conversation.

    Raises InvalidRequest or UnsupportedParameter for what contradicts itself.
    """
    prompt, choice = to_prompt(wire)
    constraint = parameters.constraint(wire)
    if choice.mode == "required":
        constraint = None  # of the content, and there will be calls only; SDKs send both
    if wire.top_logprobs and not wire.logprobs:
        raise errors.InvalidRequest("`top_logprobs` needs `logprobs: true`", param="top_logprobs")
    return Generate(
        prompt=prompt,
        sampling=parameters.sampling(wire),
        max_tokens=_max_tokens(wire),
        stop=parameters.stops(wire),
        stop_tokens=wire.stop_token_ids or [],
        constraint=constraint,
        tool_choice=choice,
        reasoning_budget=_reasoning_budget(wire),
        logprobs=(wire.top_logprobs or 0) if wire.logprobs else None,
    )


def to_prompt(wire: ChatRequest) -> tuple[Messages, ToolChoice]:
    """Return what the chat template gets, and which tools may be called."""
    tools = to_tools(wire.tools)
    choice = to_choice(wire.tool_choice, tools, parallel=wire.parallel_tool_calls)
    if wire.continue_final_message:
        if wire.add_generation_prompt:
            raise errors.InvalidRequest(
                "`continue_final_message` goes on with the last message, "
                "`add_generation_prompt` starts a new one; send one",
                param="add_generation_prompt",
            )
        if not isinstance(wire.messages[-1], Assistant):
            raise errors.InvalidRequest(
                "`continue_final_message` needs a last message of the assistant", param="messages"
            )
    elif wire.add_generation_prompt is False:
        raise errors.UnsupportedParameter(
            "`add_generation_prompt: false` leaves nobody to answer; "
            "to go on with the assistant's last message send `continue_final_message: true`",
            param="add_generation_prompt",
        )
    prompt = Messages(
        messages=[to_template(message, i) for i, message in enumerate(wire.messages)],
        tools=tools,
        documents=wire.documents or None,
        template_kwargs=_thinking(wire) | (wire.chat_template_kwargs or {}),
        continue_last=bool(wire.continue_final_message),
    )
    return prompt, choice


def _max_tokens(wire: ChatRequest) -> int | None:
    if differs(wire.max_tokens, wire.max_completion_tokens):
        raise errors.InvalidRequest(
            "`max_tokens` and `max_completion_tokens` mean the same and differ",
            param="max_completion_tokens",
        )
    return wire.max_tokens if wire.max_completion_tokens is None else wire.max_completion_tokens


# ── reasoning ──

# Tokens of reasoning that an effort is worth; above "medium" it ends by itself.
BUDGETS: dict[str, int | None] = {
    "none": 0,
    "minimal": 256,
    "low": 1024,
    "medium": 8192,
    "high": None,
    "xhigh": None,
}


def thinking(effort: str | None) -> dict[str, Any]:
    """Return what templates are told: those that know efforts, and those with a switch."""
    if effort is None:
        return {}
    return {"reasoning_effort": effort, "enable_thinking": effort != "none"}


def _thinking(wire: ChatRequest) -> dict[str, Any]:
    switched_off = {"enable_thinking": False} if wire.thinking_budget_tokens == 0 else {}
    return thinking(wire.reasoning_effort) | switched_off


def _reasoning_budget(wire: ChatRequest) -> int | None:
    if wire.thinking_budget_tokens is not None:
        return None if wire.thinking_budget_tokens < 0 else wire.thinking_budget_tokens
    return BUDGETS[wire.reasoning_effort] if wire.reasoning_effort else None


# ── messages ──


def to_template(message: Message, index: int) -> dict[str, Any]:
    """Return the wire message as chat templates read it: content is one string.

    Where it has images or sounds, content is a list of parts for `media.load`.

    Raises UnsupportedParameter or InvalidRequest, with `messages[index]…` as param.
    """
    where = f"messages[{index}]"
    if isinstance(message, Assistant):
        return _assistant(message, where)
    tag = str(message.__struct_config__.tag)
    role = "system" if tag == "developer" else tag  # templates know the older word
    found: dict[str, Any] = {"role": role, "content": _content(message.content, where, role)}
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
        "content": "" if said is None else _content(said, where, "assistant"),
    }
    if message.name is not None:
        found["name"] = message.name
    if message.reasoning_content is not None:
        found["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        found["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return found


def _tool_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": arguments_of(call.function.arguments)}
    return {"id": call.id, "type": "function", "function": function}


_LOOKING = ("user", "tool")  # whose messages may have images and sounds


def _content(content: Content, where: str, role: str) -> str | list[dict[str, Any]]:
    """Return one string, or parts of text and media where there are images or sounds."""
    if isinstance(content, str):
        return content
    parts = [_part(part, f"{where}.content[{i}]", role) for i, part in enumerate(content)]
    if any(part["type"] != "text" for part in parts):
        return parts
    return "\n".join(part["text"] for part in parts)


def _part(part: Part, where: str, role: str) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, RefusalPart):
        return {"type": "text", "text": part.refusal}
    if role not in _LOOKING:
        kind = part.__struct_config__.tag
        raise errors.UnsupportedParameter(
            f"`{where}`: parts of type `{kind}` belong into a message of the user", param=where
        )
    if isinstance(part, ImagePart):
        return media.picture(
            part.image_url.url,
            f"{where}.image_url.url",
            detail=part.image_url.detail or "auto",
        )
    if isinstance(part, AudioPart):
        sound = part.input_audio
        return media.sound(sound.data, sound.format, f"{where}.input_audio.data")
    return {"type": "text", "text": _file(part, where)}


def _file(part: FilePart, where: str) -> str:
    file = part.file
    if file.file_data is None:
        raise errors.UnsupportedParameter(
            f"`{where}.file`: no files are stored here; send `file_data` with a "
            "`data:text/plain;base64,…` URL",
            param=f"{where}.file",
        )
    return media.text_file(file.file_data, file.filename, f"{where}.file.file_data")
