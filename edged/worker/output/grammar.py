"""Tool calls as llguidance grammars, in the syntax of the model's family: pure text.

The same rows that `calls.py` reads are written here, so what a grammar lets through parses. A tag
is one token or plain text, depending on the vocabulary: `token_of(text)` gives the id of the
control token that is spelt so, None if there is none (tokens that are no control tokens match as
plain text).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from edged.protocol import Constraint, Grammar, JsonSchema, Regex, ToolChoice
from edged.worker.output.regex import bare_text, slashed
from edged.worker.output.rules import Rules, TokenOf, json_text, string
from edged.worker.output.schema import alternatives, parameters_of, properties_of, resolve
from edged.worker.output.syntax import (
    Format,
    Harmony,
    Marker,
    Named,
    Objects,
    Parameters,
    Pythonic,
    Syntax,
    Trigger,
)

# What stands before content, in families that mark it.
_CONTENT = {"gpt-oss": "<|channel|>final<|message|>", "functionary-v3.2": ">>>all\n"}
_QUOTED = '", '  # after a string, before the next key


def lark(
    form: Format,
    tools: Sequence[dict[str, Any]],
    choice: ToolChoice,
    constraint: Constraint | None = None,
    *,
    token_of: TokenOf,
    opened: bool = False,
) -> str:
    """Return the grammar of a whole answer that calls at least one tool.

    `tools` are OpenAI's, `choice` says which of them and how many calls. It goes on after a prompt
    that ends with `form.given`. A block of reasoning may come first if the model reasons
    (`form.thinks`); `opened`: the prompt has opened it already.
    With `constraint` the answer may be content that follows it instead of a call (JsonSchema and
    Regex only). Raises ValueError if `choice` allows none of the tools.
    """
    writer = _Writer(tools, choice, token_of)
    answer = writer.calls(form.calls[0], given=bool(form.given))
    if constraint is not None:
        answer = f"({answer} | {writer.content(constraint, form)})"
    thoughts = ""
    if isinstance(form.calls[0], Harmony):
        thoughts = writer.rule(writer.analysis(opened=opened)) + ("" if opened else "?")
    elif form.thinks is not None:
        block = writer.rule(writer.reasoning(form.thinks, opened=opened))
        thoughts = block if opened else f"{block}?"
    return writer.text(f"{thoughts} {answer}")


def lark_after_trigger(
    tools: Sequence[dict[str, Any]],
    choice: ToolChoice,
    trigger: Trigger,
    *,
    token_of: TokenOf,
) -> str:
    """Return the grammar of what may follow `trigger`: the rest of its call, further calls.

    For `auto`: the engine starts it when `Output.trigger` is set, with the text that
    `Output.triggered` has already. Raises ValueError if `choice` allows none of the tools.
    """
    writer = _Writer(tools, choice, token_of)
    return writer.text(writer.after(trigger))


class _Writer(Rules):
    """Calls of these tools as the rules of one grammar."""

    def __init__(
        self, tools: Sequence[dict[str, Any]], choice: ToolChoice, token_of: TokenOf
    ) -> None:
        super().__init__(token_of)
        named = {tool["function"]["name"]: tool for tool in tools}
        allowed = choice.names or list(named)
        self._tools = {name: named[name] for name in allowed if name in named}
        if not self._tools:
            raise ValueError("no tool may be called")
        self._parallel = choice.parallel

    def reasoning(self, marker: Marker, *, opened: bool) -> str:
        return f"{'' if opened else self.literal(marker.opening)} {self.until(marker.closing)} WS?"

    def analysis(self, *, opened: bool) -> str:
        before = "" if opened else self.literal("<|channel|>analysis<|message|>")
        return f"{before} {self.until('<|end|>')} {self.literal('<|start|>assistant')}"

    def content(self, constraint: Constraint, form: Format) -> str:
        before = _CONTENT.get(form.name, "").removeprefix(form.given)
        match constraint:
            case JsonSchema(schema):
                return f"{self.literal(before)} {self.rule(f'%json {json_text(schema)}')}"
            case Regex(pattern):
                return f"{self.literal(before)} {self.rule(f'/{slashed(pattern)}/')}"
            case Grammar():
                raise ValueError("a grammar of its own cannot be joined with tools")

    def arguments(self, name: str) -> str:
        function = self._tools[name]["function"]
        schema = {**parameters_of(self._tools[name])}
        if "$ref" not in schema:
            schema["type"] = "object"
        return self.json(schema, strict=bool(function.get("strict")))

    # ── calls ──

    def calls(self, syntax: Syntax, *, given: bool = False) -> str:
        """One call, or several, with everything around them.

        `given`: the prompt ends with what opens the first.
        """
        match syntax:
            case Objects():
                return self._objects(syntax)
            case Named() if given:
                more = self._more(syntax) if self._parallel else ""
                return f"({self._named(syntax, called=True)} {more})"
            case Named():
                calls = self._repeat(self._named(syntax), "")
                return f"{self.literal(syntax.opening)} {calls} {self.literal(syntax.closing)}"
            case Parameters():
                return self._repeat(self._parameters(syntax), syntax.line)
            case Pythonic():
                calls = self._repeat(self._pythonic(), syntax.separator)
                before = self.literal(syntax.opening + syntax.before)
                return f"{before} {calls} {self.literal(syntax.after + syntax.closing)}"
            case Harmony():
                before = self.literal("<|channel|>commentary to=functions.")
                return f"{before} {self._harmony()}"

    def after(self, trigger: Trigger) -> str:  # noqa: PLR0911 - one for each syntax
        """The rest of a call whose beginning is written, and what may follow it."""
        syntax = trigger.syntax
        more = self._more(syntax) if self._parallel else ""
        match syntax:
            case Objects():
                if trigger.tool:
                    return f"WS? {self.arguments(trigger.tool)} WS? {string('}')} {more}"
                before = f"WS? {self.literal(syntax.before.strip())} WS?"
                inside = f"{self._objects_inside(syntax)} WS? {self._closing(syntax)}"
                return f"{before if syntax.before.strip() else 'WS?'} {inside} {more}"
            case Named():
                if trigger.text == syntax.opening:
                    calls = self._repeat(self._named(syntax), "")
                    return f"WS? {calls} {self.literal(syntax.closing)}"
                closing = f"({self.literal(syntax.closing)})?" if syntax.closing else ""
                return f"{self._named(syntax, called=True)} {more} {closing}"
            case Parameters():
                called = trigger.text == syntax.function
                return f"WS? {self._parameters(syntax, opened=True, called=called)} {more}"
            case Pythonic():
                calls = self._repeat(self._pythonic(), syntax.separator)
                before = f"WS? {self.literal(syntax.before.strip())} WS?"
                return f"{before} {calls} {self.literal(syntax.after + syntax.closing)}"
            case Harmony():
                return f"WS? {self.arguments(trigger.tool)}"

    def _more(self, syntax: Syntax) -> str:
        """Calls after the first one, with what parts them from it."""
        match syntax:
            case Objects(listed=False, opening=opening) if opening:
                return f"(WS? {self._tagged(syntax)})*"
            case Objects(listed=False, separator=separator) if separator:
                return f"({string(separator)} {self._objects_inside(syntax)})*"
            case Named():
                return f"(WS? {self.rule(self._named(syntax))})*"
            case Parameters():
                return f"(WS? {self.rule(self._parameters(syntax))})*"
        return ""

    def _repeat(self, call: str, separator: str) -> str:
        if not self._parallel:
            return f"({call})"
        call = self.rule(call)
        between = string(separator) if separator else ""
        return f"{call} ({between} {call})*"

    # ── JSON objects ──

    def _objects(self, syntax: Objects) -> str:
        if syntax.opening and not syntax.listed:
            return self._repeat(self._tagged(syntax), syntax.after)
        inside = self._objects_inside(syntax)
        if not syntax.listed:
            return self._repeat(inside, syntax.separator)
        return f"{self.literal(syntax.opening + syntax.before)} {inside} {self._closing(syntax)}"

    def _tagged(self, syntax: Objects) -> str:
        before = self.literal(syntax.opening + syntax.before)
        return f"{before} {self._objects_inside(syntax)} {self._closing(syntax)}"

    def _closing(self, syntax: Objects) -> str:
        return self.literal(syntax.after + syntax.closing) if syntax.closing else ""

    def _objects_inside(self, syntax: Objects) -> str:
        one = self.rule(" | ".join(self._object(syntax, name) for name in self._tools))
        if not syntax.listed:
            return one
        more = f'("," WS? {one})*' if self._parallel else ""
        return f'"[" WS? {one} {more} WS? "]"'

    def _object(self, syntax: Objects, name: str) -> str:
        before = "{" + _key(syntax.name) + json.dumps(name, ensure_ascii=False) + ", "
        before += _key(syntax.arguments)
        arguments, after = self.arguments(name), string("}")
        if not syntax.id:
            return f"{string(before)} {arguments} {after}"
        key = _key(syntax.id) + '"'
        if syntax.id_last:
            return (
                f"{string(before)} {arguments} {string(', ' + key)} /[a-zA-Z0-9]{{9}}/ "
                + string('"}')
            )
        number = string("{" + key) + " /[0-9]{1,3}/"
        return f"{number} {string(_QUOTED + before[1:])} {arguments} {after}"

    # ── a name, then JSON ──

    def _named(self, syntax: Named, *, called: bool = False) -> str:
        number = f"{string(syntax.number)} /[0-9]{{1,3}}/" if syntax.number else ""
        call_id = f"{self.literal(syntax.id)} /[a-zA-Z0-9]{{9}}/" if syntax.writes_id else ""
        names = [
            f"{string(syntax.prefix + name)} {number} {call_id} {self.literal(syntax.between)} "
            f"{self.arguments(name)}"
            for name in self._tools
        ]
        call = "" if called else self.literal(syntax.call)
        return f"{call} {self.rule(' | '.join(names))} {self.literal(syntax.end)}"

    def _harmony(self) -> str:
        middle = self.literal(" <|constrain|>json<|message|>")
        names = [f"{string(name)} {middle} {self.arguments(name)}" for name in self._tools]
        return self.rule(" | ".join(names))

    # ── tags around each parameter ──

    def _parameters(self, syntax: Parameters, *, opened: bool = False, called: bool = False) -> str:
        line = syntax.line if syntax.function else ""
        before = "" if opened or not syntax.opening else self.literal(syntax.opening + line)
        function = "" if called else self.literal(syntax.function)
        calls = []
        for name, tool in self._tools.items():
            schema = parameters_of(tool)
            values = self._all_of(syntax, schema, strict=bool(tool["function"].get("strict")))
            head = string(name) + " " + self.literal(syntax.name_end + syntax.line)
            calls.append(f"{head} {values}")
        end = syntax.end + (syntax.line + syntax.closing if syntax.closing and syntax.end else "")
        return f"{before} {function} {self.rule(' | '.join(calls))} " + self.literal(
            end or syntax.closing
        )

    def _all_of(self, syntax: Parameters, schema: dict[str, Any], *, strict: bool) -> str:
        required = resolve(schema, schema).get("required", [])
        written = []
        for key, value in properties_of(schema).items():
            one = self.rule(self._parameter(syntax, key, value, schema, strict=strict))
            written.append(one if key in required else f"{one}?")
        return " ".join(written)

    def _parameter(
        self,
        syntax: Parameters,
        key: str,
        value: dict[str, Any],
        root: dict[str, Any],
        *,
        strict: bool,
    ) -> str:
        head = self.literal(syntax.parameter) + " " + string(key)
        head += " " + self.literal(syntax.key_end + syntax.pad)
        tail = self.literal(syntax.pad + syntax.value_end + syntax.line)
        bodies = []
        for one in alternatives(value, root):
            if one.get("type") == "string" or not one:
                bodies += self._text_value(syntax, one, strict=strict)
            else:
                bodies.append(f"{self.json(_whole_schema(one, root), strict=strict)} {tail}")
        return (
            f"{head} {self.rule(' | '.join(bodies or self._text_value(syntax, {}, strict=strict)))}"
        )

    def _text_value(self, syntax: Parameters, schema: dict[str, Any], *, strict: bool) -> list[str]:
        """The bare text of a string, with its closing tag."""
        tail = self.literal(syntax.pad + syntax.value_end + syntax.line)
        fixed = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if isinstance(fixed, list):
            return [f"{string(str(v)) if v else ''} {tail}" for v in fixed]
        limits = bare_text(schema, strict=strict)
        if limits:
            # With what follows in one expression: by itself it would take the line end as well.
            text = "(" + " & ".join(limits) + ")"
            if self.token_of(syntax.value_end) is None:
                return [self.terminal(f"{text} {tail}")]
            pad = f" {string(syntax.pad)}" if syntax.pad else ""
            return [f"{self.terminal(text + pad)} {self.literal(syntax.value_end + syntax.line)}"]
        return [f"{self.until(syntax.value_end)} {self.literal(syntax.line)}"]

    # ── Python ──

    def _pythonic(self) -> str:
        calls = []
        for name, tool in self._tools.items():
            schema = parameters_of(tool)
            strict = bool(tool["function"].get("strict"))
            calls.append(f'{string(name + "(")} {self._keywords(schema, strict=strict)} ")"')
        return self.rule(" | ".join(calls))

    def _keywords(self, schema: dict[str, Any], *, strict: bool) -> str:
        """`key=value, …`: a rule for each place, because of the commas between optional ones."""
        required = resolve(schema, schema).get("required", [])
        first, later = "", ""
        for key, value in reversed(properties_of(schema).items()):
            item = f"{string(key + '=')} {self.json(_whole_schema(value, schema), strict=strict)}"
            comma = '", "'
            if key in required:
                first, later = f"{item} {later}", f"{comma} {item} {later}"
            else:
                first = f"({item} {later} | {first})" if first.strip() else f"({item} {later})?"
                later = (
                    f"({comma} {item} {later} | {later})" if later.strip() else f"({comma} {item})?"
                )
            first, later = (self.rule(x) if x.strip() else "" for x in (first, later))
        return first


def _whole_schema(part: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Return a parameter's schema with what the references in it may lead to."""
    if '"$ref"' not in json_text(part):
        return part
    return {key: root[key] for key in ("$defs", "definitions") if key in root} | part


def _key(name: str) -> str:
    return json.dumps(name, ensure_ascii=False) + ": "
