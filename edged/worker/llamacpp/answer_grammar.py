"""Which grammar an answer has to follow, of all that a request may ask for.

* A call is demanded: the grammar of the family's calls, from the first token on (after reasoning).
* The content is constrained and no tool may be called: that grammar, after reasoning.
* Both: the content follows it, or the answer is a call.
* Tools may be called: the answer is free until it has begun a call, which then has to be one.

A call that is demanded leaves no content, so a constraint of the content says nothing about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from edged.errors import InvalidRequest
from edged.protocol import Constraint, Generate, Messages
from edged.worker import output
from edged.worker.llamacpp import grammar_text
from edged.worker.output import Format, Marker, Trigger, reasoning
from edged.worker.output.harmony import TRIGGER
from edged.worker.output.syntax import Harmony, Syntax, split_tags

TokenOf = Callable[[str], int | None]

_ANY = "/(?s:.*)/"
_SPACE = "/[ \\n]{0,8}/"
_MOST_LIKELY = 32  # grammars that are compiled before they are needed


class Needed(NamedTuple):
    """A grammar that is to be compiled, and the field of the request that asks for it."""

    text: str
    param: str


class Calls(NamedTuple):
    """The calls that a free answer may begin: what grammar follows the beginning of one."""

    request: Generate
    form: Format
    token_of: TokenOf

    @property
    def strict(self) -> bool:
        """A tool demands that its schema is kept."""
        return any(tool["function"].get("strict") for tool in _tools_of(self.request))

    def after(self, trigger: Trigger) -> Needed:
        """Return the grammar of what follows `trigger`."""
        lark = output.lark_after_trigger(
            _tools_of(self.request), self.request.tool_choice, trigger, token_of=self.token_of
        )
        return Needed(grammar_text.of_lark(lark), "tools")

    def likely(self) -> list[Needed]:
        """Return the grammars of the beginnings that this model writes, the likely ones first."""
        triggers = [t for syntax in self.form.calls for t in self._triggers(syntax)]
        return [self.after(trigger) for trigger in triggers[:_MOST_LIKELY]]

    def _triggers(self, syntax: Syntax) -> list[Trigger]:
        openings = {getattr(syntax, name, "") for name in ("opening", "call", "function")} - {""}
        if openings:
            return [Trigger(syntax, opening) for opening in sorted(openings)]
        # Without a tag it is the name that tells a call from text.
        text = TRIGGER if isinstance(syntax, Harmony) else ""
        named = [tool["function"]["name"] for tool in _tools_of(self.request)]
        allowed = self.request.tool_choice.names or named
        return [Trigger(syntax, text, name) for name in named if name in allowed]


def demanded(request: Generate, form: Format, prompt: str, token_of: TokenOf) -> Needed | None:
    """Return the grammar of the whole answer to a rendered prompt; None if it may start freely.

    Raises InvalidRequest where the request contradicts itself.
    """
    opened = reasoning.opened(form, prompt) is not None
    if not opened and (request.reasoning_budget == 0 or reasoning.closed(form, prompt)):
        form = msgspec.structs.replace(form, thinks=None)
    if not prompt.endswith(form.given):
        form = msgspec.structs.replace(form, given="")
    tools, choice = _tools_of(request), request.tool_choice
    if choice.mode == "required" or (tools and request.constraint is not None):
        constraint = None if choice.mode == "required" else request.constraint
        try:
            lark = output.lark(form, tools, choice, constraint, token_of=token_of, opened=opened)
        except ValueError as error:
            param = "tool_choice" if constraint is None else grammar_text.param_of(constraint)
            raise InvalidRequest(f"{error}", param=param) from error
        return Needed(grammar_text.of_lark(lark), "tools")
    if request.constraint is None:
        return None
    return content(request.constraint, _before_content(form, token_of, opened=opened))


def content(constraint: Constraint, around: str | None = None) -> Needed:
    """Return the grammar of an answer that is nothing else, or that `around` has around it."""
    return Needed(grammar_text.text_of(constraint, around), grammar_text.param_of(constraint))


def closing(request: Generate, form: Format, prompt: str) -> str | None:
    """Return the text that ends the reasoning of an answer; None for a model that never reasons."""
    return reasoning.closing(form, prompt, may_call=bool(_tools_of(request)))


def _tools_of(request: Generate) -> list[dict[str, Any]]:
    if not isinstance(request.prompt, Messages) or request.tool_choice.mode == "none":
        return []
    return request.prompt.tools or []


def _before_content(form: Format, token_of: TokenOf, *, opened: bool) -> str | None:
    """Return the grammar of an answer whose content is `@content`; None if that is all of it."""
    if isinstance(form.calls[0], Harmony):
        thoughts, *tail = _thoughts(
            Marker("<|channel|>analysis<|message|>", "<|end|>"), token_of, opened=opened
        )
        between = _literal("<|start|>assistant", token_of)
        final = _literal("<|channel|>final<|message|>", token_of)
        before = f"({thoughts} {between})" + ("" if opened else "?") + f" {final}"
    elif form.thinks is not None:
        thoughts, *tail = _thoughts(form.thinks, token_of, opened=opened)
        before = f"({thoughts} {_SPACE})" + ("" if opened else "?")
    else:
        return None
    return "\n".join([f"start: {before} @content", *tail])


def _thoughts(marker: Marker, token_of: TokenOf, *, opened: bool) -> list[str]:
    """Return the rule of a block of reasoning, and the rules that it uses."""
    opening = "" if opened else _literal(marker.opening, token_of)
    token = token_of(marker.closing)
    if token is not None:
        return [f"{opening} {_ANY} <[{token}]>"]
    end = "".join(c if c.isalnum() else f"\\x{ord(c):02x}" for c in marker.closing)
    return [f"{opening} thoughts", f"thoughts[lazy]: /(?s:.*){end}/"]


def _literal(text: str, token_of: TokenOf) -> str:
    parts = []
    for part in split_tags(text):
        token = token_of(part)
        parts.append(msgspec.json.encode(part).decode() if token is None else f"<[{token}]>")
    return " ".join(parts)
