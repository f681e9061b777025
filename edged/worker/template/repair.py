"""What a template cannot render, said in a way that it can.

The usual repairs: a system message that the template refuses or drops goes into the user's next
turn, turns of one role are joined where they must alternate, content becomes text or parts, calls
and their results become text where a template knows none, and tools that it would not show are
described in the system message, in the words of the Hermes and Qwen models.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from edged.worker.template.messages import REASONING, Message, parts_of, text_of
from edged.worker.template.traits import CallForm, Traits, tool_variables

_BETWEEN = "\n\n"  # between what were two messages
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")

_TOOLS_HEAD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_TOOLS_TAIL = """
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


_json = json.JSONEncoder(ensure_ascii=False).encode


def describe(tools: list[dict[str, Any]]) -> str:
    """Return the text that stands in for a template's own way to show tools."""
    lines = [_json(tool) for tool in tools]
    return _TOOLS_HEAD + "\n".join(lines) + _TOOLS_TAIL


def repair(
    messages: list[Message], tools: list[dict[str, Any]] | None, traits: Traits, source: str
) -> tuple[list[Message], dict[str, Any]]:
    """Return the messages as the template takes them, and the variables that show it the tools.

    The messages are in normal form (`messages.py`).
    """
    messages = [dict(message) for message in messages]
    for message in messages:
        if message["role"] == "developer":  # templates take both, or know the older word
            message["role"] = "system"
    form, variables = traits.calls, traits.no_tools
    write = _writer(source)
    if tools and traits.tools:
        variables = tool_variables(traits.tools, tools)
    elif tools:
        messages.insert(0, {"role": "system", "content": describe(tools)})
        _join_systems(messages)
        form, write = None, _as_hermes
    messages = [_without_calls(each, form, write) for each in messages]
    if not (traits.system and traits.late_system):
        messages = list(_systems_in_place(messages, traits))
    messages = list(_alternating(messages, traits))
    if form and form.results == "field":
        messages = list(_results_in_field(messages))
    if form and not form.parallel:
        messages = list(_one_call_each(messages))
    for message in messages:
        _shape(message, traits, form, source)
    return messages, variables


# ── tools ──


def with_descriptions(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool with everything that a template may count on, empty where it is missing."""
    function = tool["function"]
    parameters = function.get("parameters") or {"type": "object"}
    properties = {
        key: _completed(each, type="string", description="") if isinstance(each, dict) else each
        for key, each in (parameters.get("properties") or {}).items()
    }
    completed = _completed(function, description="")
    return tool | {"function": completed | {"parameters": parameters | {"properties": properties}}}


def _completed(given: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return given | {key: value for key, value in defaults.items() if given.get(key) is None}


# ── turns ──


def _join(first: Message, second: Message) -> Message:
    """Return one message of what two of the same role said."""
    ours, theirs = first["content"], second["content"]
    if isinstance(ours, list) or isinstance(theirs, list):
        content: Any = [*parts_of(ours), *parts_of(theirs)]
    else:
        content = _BETWEEN.join([text for text in (ours, theirs) if text])
    joined = first | second | {"content": content}
    thoughts = [
        each["reasoning_content"] for each in (first, second) if "reasoning_content" in each
    ]
    if thoughts:
        joined["reasoning_content"] = _BETWEEN.join(thoughts)
    calls = [*first.get("tool_calls", ()), *second.get("tool_calls", ())]
    return joined | ({"tool_calls": calls} if calls else {})


def _join_systems(messages: list[Message]) -> None:
    """Make one system message of those at the start."""
    while len(messages) > 1 and messages[0]["role"] == messages[1]["role"] == "system":
        messages[:2] = [_join(messages[0], messages[1])]


def _systems_in_place(messages: list[Message], traits: Traits) -> Iterator[Message]:
    """Put system messages where the template takes them: at the start, or into user turns."""
    _join_systems(messages)
    waiting: Message | None = None
    for i, message in enumerate(messages):
        if message["role"] == "system" and not (i == 0 and traits.system):
            as_user = {"role": "user", "content": message["content"]}
            waiting = _join(waiting, as_user) if waiting else as_user
        elif waiting and message["role"] == "user":
            yield _join(waiting, message)
            waiting = None
        else:
            if waiting and message["role"] != "tool":
                yield waiting  # no turn of the user to go into
                waiting = None
            yield message
    if waiting:
        yield waiting


def _alternating(messages: list[Message], traits: Traits) -> Iterator[Message]:
    last: Message | None = None
    for message in messages:
        role = message["role"]
        joins = role in ("user", "assistant") and role not in traits.repeats
        if last and joins and last["role"] == role:
            last = _join(last, message)
            continue
        if last:
            yield last
        last = message
    if last:
        yield last


# ── calls ──


def _as_hermes(calls: list[Message]) -> str:
    texts = [_json(_named(call)) for call in calls]
    return "\n".join([f"<tool_call>\n{text}\n</tool_call>" for text in texts])


def _as_granite(calls: list[Message]) -> str:
    return "<|tool_call|>" + _json([_named(call) for call in calls])


def _as_lfm2(calls: list[Message]) -> str:
    texts = []
    for call in calls:
        name, arguments = _named(call).values()
        pairs = arguments.items() if isinstance(arguments, dict) else ()
        texts.append(f"{name}({', '.join([f'{key}={_json(value)}' for key, value in pairs])})")
    return f"<|tool_call_start|>[{', '.join(texts)}]<|tool_call_end|>"


def _named(call: Message) -> Message:
    return {key: call["function"][key] for key in ("name", "arguments")}


def _writer(source: str) -> Callable[[list[Message]], str]:
    """Return how the model writes calls, for templates that show tools and drop calls."""
    if "<|tool_list_start|>" in source or "List of tools: [" in source:
        return _as_lfm2
    return _as_granite if "<|tool_call|>" in source else _as_hermes


def _without_calls(
    message: Message, form: CallForm | None, write: Callable[[list[Message]], str]
) -> Message:
    """Say calls and results as text where the template has no place for them."""
    if message["role"] == "tool" and (form is None or form.results == "no"):
        content = f"<tool_response>\n{text_of(message['content'])}\n</tool_response>"
        return {"role": "user", "content": content}
    if "tool_calls" in message and not (form and form.shown):
        said = [text_of(message["content"])] if message["content"] else []
        left = {key: value for key, value in message.items() if key != "tool_calls"}
        return left | {"content": "\n".join([*said, write(message["tool_calls"])])}
    return message


def _results_in_field(messages: list[Message]) -> Iterator[Message]:
    """Put results, and what the assistant said then, into the message that called."""
    caller: Message | None = None
    for message in messages:
        if caller and message["role"] == "tool":
            response = {"name": message.get("name", ""), "response": _value(message["content"])}
            caller["tool_responses"] = [*caller.get("tool_responses", ()), response]
            continue
        if (
            caller
            and message["role"] == "assistant"
            and "tool_calls" not in message
            and not caller["content"]
        ):
            caller["content"] = message["content"]
            caller = None
            continue
        caller = message if "tool_calls" in message else None
        yield message


def _value(content: str | list[Message]) -> Any:
    text = text_of(content)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _one_call_each(messages: list[Message]) -> Iterator[Message]:
    """Make one message of every call, followed by its result."""
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        calls = message.get("tool_calls", ())
        if len(calls) <= 1:
            yield message
            continue
        came = list(itertools.takewhile(_is_result, itertools.islice(messages, at, None)))
        at += len(came)
        for i, call in enumerate(calls):
            first = message if i == 0 else {"role": "assistant", "content": ""}
            yield first | {"tool_calls": [call]}
            yield from came[i : i + 1]
        yield from came[len(calls) :]


def _is_result(message: Message) -> bool:
    return bool(message["role"] == "tool")


def short_id(call_id: str) -> str:
    """Return nine letters and digits that stand for an id; such an id stays as it is."""
    if _SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:9]


# ── one message ──


def _shape(message: Message, traits: Traits, form: CallForm | None, source: str) -> None:
    """Bring the fields of a message into the template's form, in place."""
    role, content = message["role"], message["content"]
    if isinstance(content, list):
        if role not in traits.parts:
            message["content"] = text_of(content)
    elif content and role in traits.parts and role not in traits.text:
        message["content"] = parts_of(content)
    if form:
        if form.short_ids and isinstance(message.get("tool_call_id"), str):
            message["tool_call_id"] = short_id(message["tool_call_id"])
        if "tool_calls" in message:
            message["tool_calls"] = [_call(call, form) for call in message["tool_calls"]]
            if not content:
                message["content"] = form.no_content
    if "reasoning_content" in message:
        _shape_thinking(message, form, source)


def _shape_thinking(message: Message, form: CallForm | None, source: str) -> None:
    thought, content = message["reasoning_content"], message["content"]
    if form and form.thinking_parts:
        del message["reasoning_content"]
        said = parts_of(content) if content else []
        message["content"] = [{"type": "thinking", "thinking": thought}, *said]
        return
    if form and form.lone_thinking and content and "tool_calls" in message:
        thought = _BETWEEN.join([thought, text_of(content)])
        message["content"] = form.no_content
    for key in REASONING:
        if key in source:  # under every name that the template looks for
            message[key] = thought


def _call(call: Message, form: CallForm) -> Message:
    function = call["function"]
    if form.text_arguments and not isinstance(function["arguments"], str):
        text = _json(function["arguments"])
        call = call | {"function": function | {"arguments": text}}
    if form.short_ids and isinstance(call.get("id"), str):
        call = call | {"id": short_id(call["id"])}
    return call
