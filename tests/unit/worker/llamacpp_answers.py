"""The answers and what llama.cpp reads in them, out of its own test of the chat parsers.

`tests/test-chat.cpp` is C++; this reads as much of it as its tables need: string literals, names,
braces and chains of calls.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

_TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/                             # comments
    |R"(?P<mark>[^()\s\\]*)\((?P<raw>.*?)\)(?P=mark)"  # raw string
    |"(?P<text>(?:\\.|[^"\\])*)"
    |(?P<word>[A-Za-z_][\w:]*)
    |(?P<mark2>[().;{},=])
    |\s+|.""",
    re.VERBOSE | re.DOTALL,
)
_TOOL = ("name", "description", "parameters")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


class Text(str):
    """A string literal; other tokens are plain `str`."""

    __slots__ = ()


class Case(NamedTuple):
    """One test of llama.cpp. `options`: the arguments of each call of the chain."""

    template: str
    answer: str
    options: dict[str, list[Any]]


class Message(NamedTuple):
    """What llama.cpp reads; calls are name, arguments, id."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str, str], ...] = ()


def tokens(source: str) -> list[str]:
    found: list[str] = []
    for match in _TOKEN.finditer(source):
        text: str | None = None
        if match["raw"] is not None:
            text = match["raw"]
        elif match["text"] is not None:
            text = re.sub(r"\\(.)", lambda e: _ESCAPES.get(e[1], e[1]), match["text"])
        if text is not None:
            before = found.pop() if found and isinstance(found[-1], Text) else ""
            found.append(Text(before + text))
        elif word := match["word"] or match["mark2"]:
            found.append(word)
    return found


class Reader:
    """Expressions out of tokens: strings, lists, tables with designators, calls, names."""

    def __init__(self, found: list[str], names: dict[str, Any]) -> None:
        self.found = found
        self.names = names
        self.at = 0

    def take(self, wanted: str | None = None) -> str:
        token = self.found[self.at]
        assert wanted in {None, token}, self.found[self.at : self.at + 9]
        self.at += 1
        return token

    def expression(self) -> Any:
        word = self.take()
        if isinstance(word, Text):
            return str(word)
        if word == "{":
            return self.braces()
        if self.found[self.at] == "(":
            self.take("(")
            return self.call(word, self.arguments(")"))
        return self.names.get(word, word)

    def arguments(self, end: str) -> list[Any]:
        items = []
        while self.found[self.at] != end:
            items.append(self.expression())
            if self.found[self.at] == ",":
                self.take(",")
        self.take(end)
        return items

    def braces(self) -> Any:
        if self.found[self.at] != ".":
            return self.arguments("}")
        table = {}
        while self.found[self.at] != "}":
            self.take(".")
            key = self.take()
            self.take("=")
            table[key] = self.expression()
            if self.found[self.at] == ",":
                self.take(",")
        self.take("}")
        return table

    @staticmethod
    def call(name: str, given: list[Any]) -> Any:
        if name == "simple_assist_msg":
            content, reasoning, tool, arguments, call_id = (*given, *[""] * 5)[:5]
            calls = ((tool, arguments, call_id),) if tool else ()
            return Message(content, reasoning, calls)
        orders = {
            "message_with_tool_calls": "na",
            "message_with_tool_calls_and_reasoning": "nar",
            "message_with_content_and_tool_call": "cna",
            "message_with_reasoning_and_tool_call": "rna",
        }
        if name in orders:
            said = dict(zip(orders[name], given, strict=True))
            return Message(said.get("c", ""), said.get("r", ""), ((said["n"], said["a"], ""),))
        if name == "message_with_reasoning_content_and_multiple_tool_calls":
            return Message(given[1], given[0], tuple((*call, "")[:3] for call in given[2]))
        return name


def read(path: Path) -> list[Case]:
    """Return every test of an answer in the file."""
    source = path.read_text()
    names: dict[str, Any] = {}
    for match in re.finditer(r"common_chat_(tool|msg)\s+(\w+)\s*(=|\{)", source):
        rest = tokens(source[match.end() - (match[3] == "{") : match.end() + 6000])
        if match[1] == "tool" or match[3] == "=":
            names[match[2]] = Reader(rest, names).expression()
    found = tokens(source[source.index("static void test_template_output_peg_parsers") :])
    cases = []
    template = ""
    for at, (one, two, three) in enumerate(zip(found, found[1:], found[2:], strict=False)):
        if one == "peg_tester" and isinstance(three, Text):
            template = three.rpartition("/")[2].removesuffix(".jinja")
        elif (one, two, three) == (".", "test", "(") and isinstance(found[at + 3], Text):
            reader = Reader(found, names)
            reader.at = at + 3
            answer = str(reader.take())
            if reader.take() != ")":
                continue  # put together from variables
            options = {}
            while reader.take() == ".":
                name = reader.take()
                reader.take("(")
                options[name] = reader.arguments(")")
            cases.append(Case(template, answer, options))
    return cases


def expected(case: Case) -> Message:
    """Return what llama.cpp reads in the answer."""
    if "expect" in case.options:
        (message,) = case.options["expect"]
        assert isinstance(message, Message), message
        return message
    calls = case.options.get("expect_tool_calls", [[]])[0]
    return Message(
        case.options.get("expect_content", [""])[0],
        case.options.get("expect_reasoning", [""])[0],
        tuple((name, arguments, call_id or "") for name, arguments, call_id in calls),
    )


def tools_of(case: Case) -> list[dict[str, Any]]:
    """Return the tools of a case as OpenAI has them."""
    found = []
    for tool in case.options.get("tools", [[]])[0]:
        fields = tool if isinstance(tool, dict) else dict(zip(_TOOL, tool, strict=False))
        schema = json.loads(fields.get("parameters") or "{}")
        function = {"name": fields["name"], "parameters": schema}
        found.append({"type": "function", "function": function})
    return found
