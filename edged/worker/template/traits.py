"""What one chat template can render, found out by trying it once, when the model is loaded.

Every trait is the answer to "does this mark show up in the prompt, as a reader would want it?".
What a template drops without a word counts as much as what it refuses.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct

#: The template's variables → the prompt, or whatever the template raises.
Render = Callable[[dict[str, Any]], str]

Message = dict[str, Any]

_MARK, _SECOND, _THOUGHT = "edgedmark", "edgedsecond", "edgedthought"
_USER: Message = {"role": "user", "content": "Hi"}
_ASSISTANT: Message = {"role": "assistant", "content": "Hello"}
_NAME = "edgedtool"
_PARAMETERS = {
    "type": "object",
    "properties": {"edgedkey": {"type": "string", "description": "A key"}},
    "required": ["edgedkey"],
}
_TOOL: dict[str, Any] = {"name": _NAME, "description": "A tool", "parameters": _PARAMETERS}
_PARTS = [{"type": "text", "text": _MARK}, {"type": "text", "text": _SECOND}]
_ARGUMENTS = {"edgedkey": "edgedvalue"}
_IDS = {False: "call_edged_000001", True: "edgedid01"}


class CallForm(Struct, frozen=True):
    """How a template wants earlier tool calls and what came of them."""

    shown: bool = True  # False: it has a place for results, none for the calls themselves
    results: Literal["no", "role", "field"] = "role"  # "field": `tool_responses` (older Gemma 4)
    short_ids: bool = False  # insists on ids of nine letters and digits (Mistral)
    text_arguments: bool = False  # prints arguments as they are: wants JSON text
    no_content: str | None = ""  # the content of a message that only calls tools
    parallel: bool = True  # several calls in one message (Llama 3: one)
    thinking_parts: bool = False  # reasoning is a part of the content (Ministral)
    lone_thinking: bool = False  # takes no content beside reasoning and calls (gpt-oss)


class Traits(Struct, frozen=True):
    """What a template takes. Where one is missing, `repair.py` finds another way."""

    no_tools: dict[str, Any]  # the variables of a request without tools
    text: frozenset[str]  # roles whose content may be a string
    parts: frozenset[str]  # roles whose content may be text parts
    late_system: bool  # system messages anywhere, not only the first
    repeats: frozenset[str]  # roles that may follow themselves
    tools: str | None  # the variable that shows them; None: they are not shown
    documents: dict[str, Any] | None  # `no_tools` of a request with documents; None: not shown
    calls: CallForm | None  # None: neither calls nor results are shown

    @property
    def system(self) -> bool:
        """A system message may stand at the start."""
        return "system" in self.text or "system" in self.parts


def probe(render: Render, source: str) -> Traits:
    """Find the traits of a template by some forty renderings of short conversations."""
    return _Probe(render, source).traits()


def tool_variables(name: str, tools: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the variables that show tools to a template that reads them under `name`."""
    if name == "functions":  # firefunction: JSON text of what is inside
        functions = [tool["function"] for tool in tools]
        return {"tools": None, name: json.dumps(functions, indent=4, ensure_ascii=False)}
    return {"tools": None, name: tools}


class _Probe:
    def __init__(self, render: Render, source: str) -> None:
        self._render = render
        self._source = source
        self._no_tools: dict[str, Any] = {}
        # transformers passes None, llama-server nothing; some templates fail on one of them.
        ways: list[dict[str, Any]] = [{"tools": None}, {"tools": []}, {}]
        ways.append({"tools": None, "functions": ""})
        self._no_tools = next((way for way in ways if self._prompt(_USER, more=way)), ways[0])
        names = ("tools", "xml_tools", "functions")
        self._tools = next((name for name in names if self._shows_tool(name, _TOOL)), None)

    def traits(self) -> Traits:
        roles = ("system", "user", "assistant")
        text = {role for role in roles if _MARK in self._around(role, _MARK)}
        parts = {role for role in roles if _shows_parts(self._around(role, _PARTS))}
        calls = self._call_form()
        if calls and calls.results == "role":
            text |= {"tool"} if _MARK in self._with_call(calls, _MARK) else set()
            parts |= {"tool"} if _shows_parts(self._with_call(calls, _PARTS)) else set()
        return Traits(
            no_tools=self._no_tools,
            text=frozenset(text),
            parts=frozenset(parts),
            late_system=self._takes_late_system(),
            repeats=frozenset(role for role in ("user", "assistant") if self._repeats(role)),
            tools=self._tools,
            documents=self._documents(),
            calls=calls and self._with_thinking(calls),
        )

    def _prompt(self, *messages: Message, more: dict[str, Any] | None = None) -> str:
        """Return the prompt; empty when the template refuses."""
        copies = [dict(message) for message in messages]
        variables = {"messages": copies, "add_generation_prompt": True} | self._no_tools
        try:
            return self._render(variables | (more or {}))
        except Exception:  # noqa: BLE001 - any failure of foreign code is the answer "no"
            return ""

    def _around(self, role: str, content: Any) -> str:
        message = {"role": role, "content": content}
        if role == "system":
            return self._prompt(message, _USER)
        return self._prompt(message) if role == "user" else self._prompt(_USER, message, _USER)

    def _takes_late_system(self) -> bool:
        first = {"role": "system", "content": _SECOND}
        late = {"role": "system", "content": _MARK}
        at_start = self._prompt(first, late, _USER)
        later = self._prompt(_USER, _ASSISTANT, late, _USER)
        return _MARK in later and _MARK in at_start and _SECOND in at_start

    def _repeats(self, role: str) -> bool:
        turns = [{"role": role, "content": _MARK}, {"role": role, "content": _SECOND}]
        around = [] if role == "user" else [_USER]
        prompt = self._prompt(*around, *turns, *around)
        return _MARK in prompt and _SECOND in prompt

    def _shows_tool(self, name: str, function: dict[str, Any]) -> bool:
        tools = [{"type": "function", "function": function}]
        return _NAME in self._prompt(_USER, more=tool_variables(name, tools))

    def _documents(self) -> dict[str, Any] | None:
        document = dict.fromkeys(("text", "content", "title", "doc_id"), _MARK)
        ways: list[dict[str, Any]] = [self._no_tools, {"tools": []}]
        for way in ways:  # Command R goes through the tools in any case
            if _MARK in self._prompt(_USER, more=way | {"documents": [document]}):
                return way
        return None

    # ── calls and what came of them ──

    def _call_form(self) -> CallForm | None:
        """Return the first way that shows a call and its result, or as much as can be shown."""
        results: list[Literal["no", "role", "field"]] = ["role", "no"]
        as_turn = f"tool\n{_MARK}"  # as it would print any role: it knows none of this name
        if "tool_responses" in self._source and as_turn in self._with_call(CallForm(), _MARK):
            results.insert(0, "field")
        for result in results:
            for shown in (True, False):
                form = self._call_form_with(result, shown=shown)
                # A template that knows nothing of tools prints any role: that says nothing.
                if form and (shown or (result == "role" and self._tools)):
                    return form
        return None

    def _call_form_with(
        self, results: Literal["no", "role", "field"], *, shown: bool
    ) -> CallForm | None:
        for short_ids, text_arguments, no_content in itertools.product(
            (False, True), (False, True), ("", None)
        ):
            form = CallForm(shown, results, short_ids, text_arguments, no_content)
            if any(_shows_call(self._with_call(form, said), form) for said in (_MARK, _PARTS)):
                twice = self._with_call(form, _MARK, n_calls=2)
                return msgspec.structs.replace(form, parallel=bool(twice))
        return None

    def _with_thinking(self, form: CallForm) -> CallForm:
        thinking: dict[str, Any] = {
            "reasoning_content": _THOUGHT,
            "thinking": _THOUGHT,
            "reasoning": _THOUGHT,
        }
        if _THOUGHT not in self._with_call(form, _MARK, last=True, **thinking):
            part = [{"type": "thinking", "thinking": _THOUGHT}]
            prompt = self._with_call(form, _MARK, last=True, content=part)
            as_part = _THOUGHT in prompt and not _printed("thinking", _THOUGHT, prompt)
            return msgspec.structs.replace(form, thinking_parts=as_part)
        both = self._with_call(form, _MARK, last=True, content=_SECOND, **thinking)
        return msgspec.structs.replace(form, lone_thinking=_SECOND not in both)

    def _with_call(
        self, form: CallForm, result: Any, *, last: bool = False, n_calls: int = 1, **more: Any
    ) -> str:
        """Return a conversation with a call; `last`: it is what the model just did."""
        arguments = json.dumps(_ARGUMENTS) if form.text_arguments else _ARGUMENTS
        function = {"name": _NAME, "arguments": arguments}
        call_id = _IDS[form.short_ids]
        call = {"id": call_id, "type": "function", "function": function}
        said: Message = {"role": "assistant", "content": form.no_content}
        if form.shown:
            said["tool_calls"] = [call] * n_calls
        if form.results == "field":
            said["tool_responses"] = [{"name": _NAME, "response": result}]
        turns = [_USER, said | more]
        if form.results == "role":
            came = {"role": "tool", "content": result, "tool_call_id": call_id, "name": _NAME}
            turns += [came] * n_calls
        if not last:
            turns += [_ASSISTANT, _USER]
        variables = {"enable_thinking": True, "thinking": True}
        if self._tools:
            tools = [{"type": "function", "function": _TOOL}]
            variables |= tool_variables(self._tools, tools)
        return self._prompt(*turns, more=variables)


def _printed(key: str, value: str, prompt: str) -> bool:
    """Tell whether an object is shown as Python or JSON prints it, not as text."""
    return re.search(rf"""{key}['"]: ?['"]{value}""", prompt) is not None


def _shows_parts(prompt: str) -> bool:
    return _MARK in prompt and _SECOND in prompt and not _printed("text", _MARK, prompt)


def _shows_call(prompt: str, form: CallForm) -> bool:
    if form.results != "no" and (_MARK not in prompt or _printed("text", _MARK, prompt)):
        return False
    if not form.shown:
        return True
    # Neither an object as Python prints it nor JSON text inside JSON text.
    as_python, twice = "'edgedkey': 'edgedvalue'", '\\"edgedvalue'
    return "edgedvalue" in prompt and as_python not in prompt and twice not in prompt
