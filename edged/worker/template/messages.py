"""A client's messages in one form, whatever dialect they came through, before any template.

Checked, so that a mistake is named by its place; copied, because templates may change what they
get; and guarded, so that control tokens in them stay text. Afterwards content is a string or a
list of text parts, `tool_calls` is absent or has calls with parsed arguments, tool results stand
in the order of their calls and carry the tool's name, and reasoning is in `reasoning_content`.
"""

from __future__ import annotations

import json
from typing import Any

from edged.errors import InvalidRequest
from edged.worker.guard import Guard

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
REASONING = ("reasoning_content", "thinking", "reasoning")  # in the order of transformers

Message = dict[str, Any]


def normal_form(messages: list[Any], guard: Guard) -> list[Message]:
    """Return copies in the form above; raises InvalidRequest with the place of a mistake."""
    if not messages:
        raise InvalidRequest("`messages` is empty; send at least one", param="messages")
    normal = [_normal(message, f"messages[{i}]", guard) for i, message in enumerate(messages)]
    return _results_in_order(normal)


def checked_tools(tools: list[Any] | None, guard: Guard) -> list[Message] | None:
    """Return guarded copies of the tools; None for none. Raises InvalidRequest."""
    for i, tool in enumerate(tools or ()):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(
                f"`tools[{i}]` must have a `function` with a `name`", param=f"tools[{i}]"
            )
    return list(guard.mark(tools)) if tools else None


def checked_documents(documents: list[Any], guard: Guard) -> list[Message]:
    """Return guarded copies of the documents; raises InvalidRequest."""
    for i, document in enumerate(documents):
        if not isinstance(document, dict):
            raise InvalidRequest(
                f"`documents[{i}]` must be an object, such as one with `title` and `text`",
                param=f"documents[{i}]",
            )
    return list(guard.mark(documents))


def text_of(content: str | list[Message]) -> str:
    """Return content as one text; parts are lines of it, as in llama-server and vLLM."""
    if isinstance(content, str):
        return content
    return "\n".join([part["text"] for part in content])


def parts_of(content: str | list[Message]) -> list[Message]:
    """Return content as text parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _normal(message: Any, where: str, guard: Guard) -> Message:
    if not isinstance(message, dict):
        raise InvalidRequest(f"`{where}` must be an object", param=where)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"`{where}.role` must be a string", param=f"{where}.role")
    normal = {key: value for key, value in message.items() if key not in REASONING}
    normal["content"] = _content(message, where)
    reasoning = next((message[key] for key in REASONING if message.get(key)), None)
    if isinstance(reasoning, str):
        normal["reasoning_content"] = reasoning
    calls = normal.pop("tool_calls", None)
    if calls:
        normal["tool_calls"] = _calls(calls, f"{where}.tool_calls")
    normal = dict(guard.mark(normal))
    if role in ROLES:  # templates compare it; another one is the client's text like any other
        normal["role"] = role
    return normal


def _content(message: Message, where: str) -> str | list[Message]:
    content = message.get("content")
    if content is None:
        refusal = message.get("refusal")
        return refusal if isinstance(refusal, str) else ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(
            f"`{where}.content` must be a string or a list of parts", param=f"{where}.content"
        )
    return [
        {"type": "text", "text": _text(part, f"{where}.content[{i}]")}
        for i, part in enumerate(content)
    ]


def _text(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(kind) if kind in ("text", "refusal") else None
    if not isinstance(text, str):
        raise InvalidRequest(f"`{where}`: this model reads text parts only", param=where)
    return text


def _calls(calls: Any, where: str) -> list[Message]:
    if not isinstance(calls, list):
        raise InvalidRequest(f"`{where}` must be a list", param=where)
    found = []
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(
                f"`{where}[{i}]` must have a `function` with a `name`", param=f"{where}[{i}]"
            )
        arguments = _arguments(function.get("arguments"))
        found.append(
            {"type": "function"} | call | {"function": function | {"arguments": arguments}}
        )
    return found


def _arguments(arguments: Any) -> Any:
    """Templates expect an object; OpenAI's wire carries it as JSON text, sometimes none at all."""
    if arguments is None or arguments == "":
        return {}
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _results_in_order(messages: list[Message]) -> list[Message]:
    """Put the results after their calls in the calls' order, with the tools' names.

    Many templates print results without their ids, one after the other.
    """
    place: dict[Any, tuple[int, str]] = {}
    ordered: list[Message] = []
    results: list[Message] = []

    def flush() -> None:
        if len(results) > 1 and all(_id_of(each) in place for each in results):
            results.sort(key=lambda each: place[_id_of(each)][0])
        ordered.extend(results)
        results.clear()

    for message in messages:
        if message["role"] == "tool":
            known = place.get(_id_of(message))
            if known and not message.get("name"):
                message["name"] = known[1]
            results.append(message)
            continue
        flush()
        ordered.append(message)
        calls = message.get("tool_calls")
        if calls:
            place = {
                _key(call.get("id")): (i, call["function"]["name"]) for i, call in enumerate(calls)
            }
    flush()
    return ordered


def _id_of(message: Message) -> str | None:
    return _key(message.get("tool_call_id"))


def _key(call_id: Any) -> str | None:
    return call_id if isinstance(call_id, str) else None
