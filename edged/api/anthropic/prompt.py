"""Anthropic's turns and blocks → a conversation as chat templates read it.

Turns of one role that follow each other become one, as at Anthropic. A tool's result becomes a
message of its own; the rest of its turn follows as the user's, in the order of the blocks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from edged import errors
from edged.api import media
from edged.api.anthropic.schema import (
    Base64Image,
    Block,
    Citations,
    ContentSource,
    Document,
    Image,
    Message,
    Prompted,
    RedactedThinking,
    SearchResult,
    Text,
    TextSource,
    Thinking,
    ToolReference,
    ToolResult,
    ToolUse,
    UrlSource,
)

Part = dict[str, Any]  # of a message: text, or an image for `media.load`

# Claude Code begins its system prompt with a line whose `cch=` differs in every request, so that no
# prefix would ever be shared. It is a stamp for Anthropic's accounts and tells a model nothing.
# (llama-server levels it too: https://github.com/ggml-org/llama.cpp/pull/21793)
_STAMP = re.compile(r"\A(x-anthropic-billing-header:[^\n]*?\bcch=)[0-9A-Za-z]+")

_OWNERS = {Thinking: "assistant", RedactedThinking: "assistant", ToolUse: "assistant"} | {
    ToolResult: "user",
    Image: "user",
    Document: "user",
    SearchResult: "user",
}


def to_messages(wire: Prompted) -> list[dict[str, Any]]:
    """Return the system prompt and all turns as OpenAI's messages, content as one string each.

    Where a turn has images, content is a list of parts for `media.load`.

    Raises UnsupportedParameter for blocks that cannot be honoured, and InvalidRequest for blocks
    of the other role, results of calls that nobody made and calls that nobody answered.
    """
    found: list[dict[str, Any]] = []
    if wire.system:
        found.append({"role": "system", "content": _system(wire.system)})
    called: dict[str, str] = {}  # name of each call, by its id
    for i, message in enumerate(wire.messages):
        for turn in _turns(message, f"messages[{i}]", called):
            _append(found, turn)
    last = found[-1]
    if last.get("tool_calls"):
        i = len(wire.messages) - 1
        raise errors.InvalidRequest(
            f"`messages[{i}]` ends with `tool_use`; send the `tool_result` in a user message",
            param=f"messages[{i}]",
        )
    if last["role"] == "assistant" and not _said(last) and len(found) > 1:
        found.pop()  # an empty beginning of the answer begins nothing
    return [turn | {"content": _folded(turn["content"])} for turn in found]


def _said(turn: dict[str, Any]) -> bool:
    return "reasoning_content" in turn or any(part["text"] for part in turn["content"])


def _append(found: list[dict[str, Any]], turn: dict[str, Any]) -> None:
    """Add `turn`, or join it with the last one of the same role."""
    last = found[-1] if found else {}
    if turn["role"] == "tool" or last.get("role") != turn["role"]:
        found.append(turn)
        return
    last["content"] += turn["content"]
    if thoughts := [
        each["reasoning_content"] for each in (last, turn) if "reasoning_content" in each
    ]:
        last["reasoning_content"] = "\n".join(thoughts)
    if calls := last.get("tool_calls", []) + turn.get("tool_calls", []):
        last["tool_calls"] = calls


def _folded(parts: list[Part]) -> str | list[Part]:
    """Return one string, or the parts where there is more than text."""
    if any(part["type"] != "text" for part in parts):
        return parts
    return "\n".join(part["text"] for part in parts)


def _part(text: str) -> Part:
    return {"type": "text", "text": text}


def _system(wire: str | list[Text]) -> list[Part]:
    texts = [wire] if isinstance(wire, str) else [block.text for block in wire]
    return [_part(_STAMP.sub(r"\g<1>0", text)) for text in texts]


def _turns(message: Message, where: str, called: dict[str, str]) -> list[dict[str, Any]]:
    content = message.content
    if isinstance(content, str):
        return [{"role": message.role, "content": [_part(content)]}]
    blocks = [(block, f"{where}.content[{i}]") for i, block in enumerate(content)]
    for block, at in blocks:
        owner = _OWNERS.get(type(block), message.role)
        if owner != message.role:
            raise errors.InvalidRequest(
                f"`{at}`: a `{_kind(block)}` block belongs into a message of the {owner}", param=at
            )
    if message.role == "assistant":
        return [_assistant(blocks, called)]
    if not blocks:
        raise errors.InvalidRequest(f"`{where}.content` is empty", param=f"{where}.content")
    return _user(message.role, blocks, called)


def _assistant(blocks: list[tuple[Block, str]], called: dict[str, str]) -> dict[str, Any]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block, at in blocks:
        match block:
            case Text():
                texts.append(block.text)
            case Thinking():
                thoughts.append(block.thinking)
            case ToolUse():
                called[block.id] = block.name
                function = {"name": block.name, "arguments": block.input}
                calls.append({"id": block.id, "type": "function", "function": function})
            case RedactedThinking():
                pass
            case _:
                raise _refused(block, at)
    found: dict[str, Any] = {"role": "assistant", "content": [_part("".join(texts))]}
    if any(thoughts):
        found["reasoning_content"] = "\n".join(thoughts)
    if calls:
        found["tool_calls"] = calls
    return found


def _user(
    role: str, blocks: list[tuple[Block, str]], called: dict[str, str]
) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for block, at in blocks:
        if isinstance(block, ToolResult):
            turns.append(_result(block, at, called))
        else:
            _append(turns, {"role": role, "content": _parts(block, at)})
    return turns


def _result(block: ToolResult, where: str, called: dict[str, str]) -> dict[str, Any]:
    if block.tool_use_id not in called:
        raise errors.InvalidRequest(
            f"`{where}.tool_use_id`: no `tool_use` before has the id {block.tool_use_id[:64]!r}",
            param=f"{where}.tool_use_id",
        )
    if isinstance(block.content, list):
        parts = _all_parts(block.content, f"{where}.content")
    else:
        parts = [_part(block.content or "")]
    if block.is_error:  # no template has another place for it
        first = parts.pop(0)["text"] if parts and parts[0]["type"] == "text" else ""
        is_told = first.lower().startswith("error")
        parts.insert(0, _part(first if is_told else f"Error: {first}"))
    return {
        "role": "tool",
        "tool_call_id": block.tool_use_id,
        "name": called[block.tool_use_id],
        "content": parts,
    }


def _all_parts(blocks: Sequence[Block], where: str) -> list[Part]:
    return [part for i, block in enumerate(blocks) for part in _parts(block, f"{where}[{i}]")]


def _parts(block: Block, where: str) -> list[Part]:
    """Return what a template shows of a block."""
    match block:
        case Text():
            return [_part(block.text)]
        case Image():
            return [_image(block, where)]
        case Document():
            _check_citations(block.citations, where)
            head = _element("title", block.title) + _element("context", block.context)
            inner = _document(block, where)
        case SearchResult():
            _check_citations(block.citations, where)
            head = _element("source", block.source) + _element("title", block.title)
            inner = _all_parts(block.content, f"{where}.content")
        case _:
            raise _refused(block, where)
    name = _kind(block)
    return [_part(f"<{name}>"), *head, *inner, _part(f"</{name}>")]


def _image(block: Image, where: str) -> Part:
    source = block.source
    if isinstance(source, Base64Image):
        url = f"data:{source.media_type};base64,{source.data}"
        return media.picture(url, f"{where}.source.data")
    if isinstance(source, UrlSource):
        return media.picture(source.url, f"{where}.source.url")
    raise _no_source("images", source, where)


def _element(name: str, text: str | None) -> list[Part]:
    return [_part(f"<{name}>{text}</{name}>")] if text else []


def _document(block: Document, where: str) -> list[Part]:
    source = block.source
    if isinstance(source, TextSource):
        return [_part(source.data)]
    if not isinstance(source, ContentSource):
        raise _no_source("documents", source, where)
    if isinstance(source.content, str):
        return [_part(source.content)]
    return _all_parts(source.content, f"{where}.source.content")


def _no_source(what: str, source: Struct, where: str) -> errors.UnsupportedParameter:
    return errors.UnsupportedParameter(
        f"`{where}.source`: {what} of type `{_kind(source)}` are not supported by this version of "
        "edged; send the content itself",
        param=f"{where}.source",
    )


def _check_citations(citations: Citations | None, where: str) -> None:
    if citations is not None and citations.enabled:
        raise errors.UnsupportedParameter(
            f"`{where}.citations`: edged does not make citations; leave it out",
            param=f"{where}.citations",
        )


def _refused(block: Block, where: str) -> errors.UnsupportedParameter:
    is_reference = isinstance(block, ToolReference)
    hint = "edged shows all tools to the model; leave it out" if is_reference else "send text"
    return errors.UnsupportedParameter(
        f"`{where}`: blocks of type `{_kind(block)}` are not supported by this version of edged; "
        f"{hint}",
        param=where,
    )


def _kind(block: Struct) -> str:
    return str(block.__struct_config__.tag)
