"""Anthropic's turns and blocks → a conversation as chat templates read it.

Turns of one role that follow each other become one, as at Anthropic. A tool's result becomes a
message of its own; the rest of its turn follows as the user's, in the order of the blocks.
"""

from __future__ import annotations

import re
from typing import Any

from edged import errors
from edged.api.anthropic.schema import (
    Block,
    Citations,
    ContentSource,
    Document,
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
)

# Claude Code begins its system prompt with a line whose `cch=` differs in every request, so that no
# prefix would ever be shared. It is a stamp for Anthropic's accounts and tells a model nothing.
_STAMP = re.compile(r"\A(x-anthropic-billing-header:[^\n]*?\bcch=)[0-9A-Za-z]+")

_OWNERS = {Thinking: "assistant", RedactedThinking: "assistant", ToolUse: "assistant"} | {
    ToolResult: "user",
    Document: "user",
    SearchResult: "user",
}


def to_messages(wire: Prompted) -> list[dict[str, Any]]:
    """Return the system prompt and all turns as OpenAI's messages, content as one string each.

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
    if last == {"role": "assistant", "content": ""} and len(found) > 1:
        found.pop()  # an empty beginning of the answer begins nothing
    return found


def _append(found: list[dict[str, Any]], turn: dict[str, Any]) -> None:
    """Add `turn`, or join it with the last one of the same role."""
    last = found[-1] if found else {}
    if turn["role"] == "tool" or last.get("role") != turn["role"]:
        found.append(turn)
        return
    for name in ("reasoning_content", "content"):
        if texts := [each[name] for each in (last, turn) if each.get(name)]:
            last[name] = "\n".join(texts)
    if "tool_calls" in turn:
        last["tool_calls"] = last.get("tool_calls", []) + turn["tool_calls"]


def _system(wire: str | list[Text]) -> str:
    texts = [wire] if isinstance(wire, str) else [block.text for block in wire]
    return "\n".join(_STAMP.sub(r"\g<1>0", text) for text in texts)


def _turns(message: Message, where: str, called: dict[str, str]) -> list[dict[str, Any]]:
    content = message.content
    if isinstance(content, str):
        return [{"role": message.role, "content": content}]
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
        if isinstance(block, Thinking):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUse):
            called[block.id] = block.name
            function = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif not isinstance(block, RedactedThinking):
            texts.append(_text(block, at))
    found: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
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
            _append(turns, {"role": role, "content": _text(block, at)})
    return turns


def _result(block: ToolResult, where: str, called: dict[str, str]) -> dict[str, Any]:
    if block.tool_use_id not in called:
        raise errors.InvalidRequest(
            f"`{where}.tool_use_id`: no `tool_use` before has the id {block.tool_use_id[:64]!r}",
            param=f"{where}.tool_use_id",
        )
    if isinstance(block.content, list):
        parts = [_text(each, f"{where}.content[{i}]") for i, each in enumerate(block.content)]
        text = "\n".join(parts)
    else:
        text = block.content or ""
    if block.is_error and not text.lower().startswith("error"):
        text = f"Error: {text}"  # no template has another place for it
    return {
        "role": "tool",
        "tool_call_id": block.tool_use_id,
        "name": called[block.tool_use_id],
        "content": text,
    }


def _text(block: Block, where: str) -> str:
    """Return the text of a block that has one."""
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Document):
        _check_citations(block.citations, where)
        head = _element("title", block.title) + _element("context", block.context)
        return f"<document>\n{head}{_document(block, where)}\n</document>"
    if isinstance(block, SearchResult):
        _check_citations(block.citations, where)
        head = _element("source", block.source) + _element("title", block.title)
        text = "\n".join(each.text for each in block.content)
        return f"<search_result>\n{head}{text}\n</search_result>"
    raise _refused(block, where)


def _element(name: str, text: str | None) -> str:
    return f"<{name}>{text}</{name}>\n" if text else ""


def _document(block: Document, where: str) -> str:
    source = block.source
    if isinstance(source, TextSource):
        return source.data
    if not isinstance(source, ContentSource):
        raise errors.UnsupportedParameter(
            f"`{where}.source`: documents of type `{source.__struct_config__.tag}` are not "
            "supported by this version of edged; send `text` or `content`",
            param=f"{where}.source",
        )
    if isinstance(source.content, str):
        return source.content
    at = f"{where}.source.content"
    return "\n".join(_text(each, f"{at}[{i}]") for i, each in enumerate(source.content))


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


def _kind(block: Block) -> str:
    return str(block.__struct_config__.tag)
