"""The rules of one llguidance grammar, collected while its parts are written: pure text.

A tag is one token or plain text, depending on the vocabulary (`TokenOf`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from edged.worker.output.regex import escaped
from edged.worker.output.syntax import split_tags

#: The id of the control token that is spelt so, None if there is none.
TokenOf = Callable[[str], int | None]

_ANY = "/(?s:.*)/"
# Room for the layouts that models were trained on, but not for white space without an end.
_SPACE = r"[ \n]{1,24}"
_WS = "WS: /[ \\n]{1,24}/"


class Rules:
    """The rules of one grammar; the same body is written once."""

    def __init__(self, token_of: TokenOf) -> None:
        self.token_of = token_of
        self._rules: list[str] = []
        self._known: dict[str, str] = {}

    def text(self, start: str) -> str:
        """Return the whole grammar."""
        return "\n".join(["%llguidance {}", f"start: {start}", *self._rules, _WS]) + "\n"

    def rule(self, body: str, options: str = "") -> str:
        """Add a rule, unless it is there, and return its name."""
        key = options + body
        if key not in self._known:
            self._known[key] = name = f"r{len(self._known)}"
            self._rules.append(f"{name}{options}: {body}")
        return self._known[key]

    def terminal(self, body: str) -> str:
        """Add a regular expression, which unlike a rule may have `&` in it."""
        if body not in self._known:
            self._known[body] = name = f"T{len(self._known)}"
            self._rules.append(f"{name}: {body}")
        return self._known[body]

    def literal(self, text: str) -> str:
        """Return `text` as tokens and strings."""
        written: list[str] = []
        plain = ""
        for part in split_tags(text):
            token = self.token_of(part)
            if token is None:
                plain += part
                continue
            if plain:
                written.append(string(plain))
            written.append(f"<[{token}]>")
            plain = ""
        if plain:
            written.append(string(plain))
        return " ".join(written)

    def until(self, tag: str) -> str:
        """Any text up to `tag`, with it."""
        token = self.token_of(tag)
        if token is not None:
            return f"{self.rule(_ANY)} <[{token}]>"
        return self.rule(f"/(?s:.*){escaped(tag)}/", "[lazy]")

    def json(self, schema: dict[str, Any], *, strict: bool = False) -> str:
        """Return a rule for JSON of `schema`; what cannot be enforced is left out unless strict."""
        options = {
            "whitespace_pattern": _SPACE,
            "json_allow_general_unicode_escapes": True,
            "lenient": not strict,
        }
        return self.rule(f"%json {json_text({'x-guidance': options, **schema})}")


def json_text(schema: dict[str, Any]) -> str:
    """Return JSON as it stands in a grammar."""
    return json.dumps(schema, ensure_ascii=False)


def string(text: str) -> str:
    """Return a Lark string."""
    return json.dumps(text, ensure_ascii=False)
