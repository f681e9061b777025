"""Tool calls out of text, in the syntaxes of `syntax.py`.

A call that turns out to be none, or one of a tool that the request does not have, is text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from edged.protocol import ToolChoice
from edged.worker.output import json_text, python_text
from edged.worker.output.pieces import Pieces
from edged.worker.output.schema import as_json, is_text, loads, parameters_of, properties_of
from edged.worker.output.source import Reading, Source
from edged.worker.output.syntax import (
    Harmony,
    Named,
    Objects,
    Parameters,
    Pythonic,
    Syntax,
    Trigger,
)

_NAME = 256  # characters of a name or a key at most
_LONG = 1 << 40


class Calls:
    """Reads the calls of one answer; they go into `pieces`."""

    def __init__(
        self, source: Source, tools: Sequence[dict[str, Any]], choice: ToolChoice, pieces: Pieces
    ) -> None:
        """`tools` are OpenAI's; those that the choice leaves out count as unknown."""
        self._source = source
        self._tools = {
            tool["function"]["name"]: parameters_of(tool)
            for tool in tools
            if not choice.names or tool["function"]["name"] in choice.names
        }
        self.pieces = pieces

    def knows(self, name: str) -> bool:
        """Return whether the request lets this tool be called."""
        return name in self._tools

    def read(self, syntaxes: Sequence[Syntax], opening: str) -> Reading[bool]:
        """Read calls after `opening`; False if what follows is none, or not whole."""
        syntax = syntaxes[0]
        if opening:  # at once, so that the first token after it can be constrained
            self.pieces.trigger = Trigger(syntax, opening)
        if len(syntaxes) > 1 and (yield from self._source.spaces()):
            braces = self._source.text[self._source.at] in "[{"
            syntax = next((s for s in syntaxes if isinstance(s, Objects) == braces), syntax)
            if opening:
                self.pieces.trigger = Trigger(syntax, opening)
        match syntax:
            case Objects():
                return (yield from self._objects(syntax))
            case Named():
                return (yield from self._named(syntax, called=opening == syntax.call))
            case Parameters():
                return (yield from self._parameters(syntax, called=opening != syntax.opening))
            case Pythonic():
                return (yield from self._pythonic(syntax))
            case Harmony():
                raise AssertionError("channels are read by harmony.py")

    def one(self, name: str) -> Reading[bool]:
        """Read the arguments of a call whose name is known."""
        self.pieces.begin(name)
        if not (yield from self._arguments(self.pieces.push)):
            return False
        self.pieces.end()
        return True

    # ── arguments ──

    def _arguments(self, push: Callable[[str], None]) -> Reading[bool]:
        """Read an object; also one inside a string, or null for none."""
        source = self._source
        start = yield from source.spaces()
        if start == "{":
            return (yield from json_text.value(source, push))
        if start == "n":
            push("{}")
            return (yield from source.tag("null"))
        text = yield from json_text.text_of(source, limit=_LONG)
        if text is None or not _is_object(text):
            return False
        push(text)
        return True

    # ── JSON objects ──

    def _objects(self, syntax: Objects) -> Reading[bool]:
        source = self._source
        if syntax.before.strip() and not (yield from source.words(syntax.before)):
            return False
        start = yield from source.spaces()
        listed = start == "[" and bool(syntax.opening)
        if listed:
            source.take(1)
        n = 0
        while True:
            if (yield from source.spaces()) == "]" and listed:
                source.take(1)
                break
            if not (yield from self._object(syntax)):
                return False
            n += 1
            if self.pieces.full:
                return True
            following = yield from source.spaces()
            if following == ("," if listed else syntax.separator.strip() or None):
                source.take(1)
            elif not (listed and following == "]") and (listed or following != "{"):
                break
        if syntax.closing:
            yield from source.words(syntax.closing)
        return n > 0

    def _object(self, syntax: Objects) -> Reading[bool]:
        source = self._source
        if not (yield from source.tag("{")):
            return False
        name: str | None = None
        call_id: str | None = None
        early: list[str] = []  # arguments before the name
        while True:
            yield from source.spaces()
            key = yield from json_text.text_of(source, limit=_NAME)
            if key is None or (yield from source.spaces()) != ":":
                return False
            source.take(1)
            start = yield from source.spaces()
            if key == syntax.name and name is None:
                name = yield from json_text.text_of(source, limit=_NAME)
                good = name is not None and self.knows(name)
            elif key in (syntax.arguments, "arguments", "parameters") and not self.pieces.begun:
                if name is not None and not early:
                    good = yield from self._arguments_of(syntax, name, call_id)
                else:
                    good = yield from self._arguments(early.append)
            elif key in (syntax.id, "id") and start == '"':
                call_id = yield from json_text.text_of(source, limit=_NAME)
                good = call_id is not None
            else:  # without a tag around it, an object of other keys is an answer in JSON
                known = bool(syntax.opening) or key == "type"
                good = known and (yield from json_text.value(source, _ignore))
            following = (yield from source.spaces()) if good else ""
            if following not in {",", "}"}:
                return False
            source.take(1)
            if following == "}":
                return self._close(name, call_id, early)

    def _arguments_of(self, syntax: Objects, name: str, call_id: str | None) -> Reading[bool]:
        if not syntax.opening:
            self.pieces.trigger = Trigger(syntax, "", name)
            self._source.mark_trigger()
        self.pieces.begin(name, call_id, waits=syntax.id_last)
        return (yield from self._arguments(self.pieces.push))

    def _close(self, name: str | None, call_id: str | None, early: list[str]) -> bool:
        if name is None:
            return False
        if not self.pieces.begun:
            self.pieces.begin(name, call_id)
            self.pieces.push("".join(early) or "{}")
        elif call_id:
            self.pieces.name_id(call_id)
        self.pieces.end()
        return True

    # ── a name, then JSON ──

    def _named(self, syntax: Named, *, called: bool) -> Reading[bool]:
        source = self._source
        n = 0
        while True:
            if not called:
                yield from source.spaces()
                if syntax.closing and (yield from source.tag(syntax.closing)):
                    return n > 0
                if not (yield from source.tag(syntax.call)):
                    return n > 0
            called = False
            if not (yield from self._one_named(syntax)):
                return False
            n += 1
            if self.pieces.full:
                return True
            if syntax.end:
                yield from source.words(syntax.end)

    def _one_named(self, syntax: Named) -> Reading[bool]:
        source = self._source
        between = syntax.between.strip() or syntax.between
        stops = [between, syntax.id] if syntax.id else [between]
        text, stop = yield from source.until(stops, limit=_NAME)
        name, call_id = text.strip(), ""
        if syntax.number:
            call_id, (name, _, _) = name, name.rpartition(syntax.number)
            name = name.removeprefix(syntax.prefix)
        if stop and stop == syntax.id:
            call_id, stop = yield from source.until([between], limit=_NAME)
        if not stop or not self.knows(name):
            return False
        self.pieces.begin(name, call_id.strip())
        if not (yield from self._arguments(self.pieces.push)):
            return False
        self.pieces.end()
        return True

    # ── tags around each parameter ──

    def _parameters(self, syntax: Parameters, *, called: bool) -> Reading[bool]:
        source = self._source
        n = 0
        while True:
            if not called and syntax.function:
                yield from source.spaces()
                if n and syntax.closing and (yield from source.tag(syntax.closing)):
                    return True
                if not (yield from source.tag(syntax.function)):
                    return n > 0
            elif n:
                return True
            called = False
            if not (yield from self._one_of_parameters(syntax)):
                return False
            n += 1
            if self.pieces.full:
                return True

    def _one_of_parameters(self, syntax: Parameters) -> Reading[bool]:
        source = self._source
        ending = syntax.end or syntax.closing
        stops = [syntax.name_end] if syntax.name_end else ["\n", syntax.parameter, ending]
        yield from source.spaces()
        text, stop = yield from source.until(stops, limit=_NAME)
        name = text.strip()
        if not stop or not self.knows(name):
            return False
        schema = self._tools[name]
        self.pieces.begin(name)
        before = "{"
        while True:
            if stop != syntax.parameter:
                yield from source.spaces()
                if stop == ending or (yield from source.tag(ending)):
                    self.pieces.push("{}" if before == "{" else "}")
                    self.pieces.end()
                    return True
                if not (yield from source.tag(syntax.parameter)):
                    return False
            stop = ""
            first, *others = syntax.key_end.split()
            key, good = yield from source.until([first], limit=_NAME)
            if not good or not (yield from source.words(" ".join(others))):
                return False
            opening = before + json.dumps(key.strip(), ensure_ascii=False) + ": "
            if not (yield from self._parameter(syntax, opening, key.strip(), schema)):
                return False
            before = ", "

    def _parameter(
        self, syntax: Parameters, opening: str, key: str, schema: dict[str, Any]
    ) -> Reading[bool]:
        source = self._source
        if syntax.pad and (yield from source.peek()) == "\n":
            source.take(1)
        stop = syntax.value_end
        if syntax.cdata and (yield from source.tag("<![CDATA[")):
            stop = "]]>"
        kind = properties_of(schema).get(key, {})
        if is_text(kind, schema):
            self.pieces.push(opening + '"')
            text = _Text(self.pieces.push, pad=syntax.pad)
            _, found = yield from source.until([stop], limit=_LONG, sink=text, half=False)
            if found:
                self.pieces.push('"')
        else:
            value, found = yield from source.until([stop], limit=_LONG)
            if found:
                value = value.removesuffix(syntax.pad) if syntax.pad else value
                self.pieces.push(opening + as_json(value, kind, schema))
        if found and stop != syntax.value_end:
            return (yield from source.words(syntax.value_end))
        return bool(found)

    # ── Python ──

    def _pythonic(self, syntax: Pythonic) -> Reading[bool]:
        source = self._source
        fence = syntax.before.strip()
        yield from source.spaces()
        yield from source.tag(fence)
        after = syntax.after.strip()
        n = 0
        while True:
            yield from source.spaces()
            if n and after and (yield from source.tag(after)):
                break
            if not (yield from self._one_pythonic()):
                return False
            n += 1
            if self.pieces.full:
                return True
            following = yield from source.spaces()
            if following == ",":
                source.take(1)
            elif following == syntax.closing[0]:
                break
        yield from source.spaces()
        yield from source.tag(syntax.closing)
        return True

    def _one_pythonic(self) -> Reading[bool]:
        source = self._source
        name, stop = yield from source.until(["("], limit=_NAME)
        if not stop or not self.knows(name.strip()):
            return False
        self.pieces.begin(name.strip())
        before = "{"
        while (following := (yield from source.spaces())) != ")":
            if following == "," and before == ", ":
                source.take(1)
                continue
            key, stop = yield from source.until(["="], limit=_NAME)
            value = (yield from python_text.value(source)) if stop else None
            if value is None:
                return False
            self.pieces.push(f"{before}{json.dumps(key.strip(), ensure_ascii=False)}: {value}")
            before = ", "
        source.take(1)
        self.pieces.push("{}" if before == "{" else "}")
        self.pieces.end()
        return True


class _Text:
    """Bare text into the inside of a JSON string; padding at its end is dropped."""

    def __init__(self, push: Callable[[str], None], *, pad: str) -> None:
        self._push = push
        self._pad = pad
        self._held = ""

    def __call__(self, text: str) -> None:
        text = self._held + text
        self._held = self._pad if self._pad and text.endswith(self._pad) else ""
        text = text.removesuffix(self._held) if self._held else text
        if text:
            self._push(json.dumps(text, ensure_ascii=False)[1:-1])


def _is_object(text: str) -> bool:
    try:
        return isinstance(loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _ignore(_: str) -> None:
    pass
