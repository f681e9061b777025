"""A constraint as llguidance reads it: JSON schema, regular expression, Lark or GBNF.

Safe from any thread. What is wrong in the text itself becomes an InvalidRequest here; what cannot
be enforced is found when it is compiled (`constrain.py`).

GBNF is translated by llguidance's own converter: a rule of characters only becomes a word of its
lexer, which is read as far as it goes. So `name ::= [a-z ]+` swallows a `" says "` that follows it
in another rule, where llama.cpp would try both; such a grammar has to exclude the space from the
name.
"""

from __future__ import annotations

import json
import re
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import gbnf_to_lark

from edged.errors import InvalidRequest
from edged.protocol import Constraint, Grammar, JsonSchema, Regex

# Between two tokens of JSON: the layouts that models write, and no white space without an end.
JSON_SPACE = r"( |\n[ \t]{0,32})?"

_LONGEST_GBNF = 1 << 15  # characters; its translation takes time with the square of its rules
_RULE_OF_GBNF = re.compile(r"^\s*[a-zA-Z0-9_-]+\s*::=", re.MULTILINE)
_COMMENT = re.compile(r"^\s*(#|//).*$", re.MULTILINE)
# The parts of a GBNF text that are not mere punctuation.
_PARTS = re.compile(
    r"""(?P<comment>\#[^\n]*)
      | (?P<characters>"(?:\\.|[^"\\])*" | \[(?:\\.|[^\]\\])*\])
      | (?P<times>\{[^}]*\})
      | (?P<name>[a-zA-Z0-9_-]+)""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\.", re.DOTALL)
_OF_SYNTAX = frozenset('"\\[]-^/\n\r\t')


def param_of(constraint: Constraint) -> str:
    """Return the request's field that a constraint comes from."""
    return "response_format" if isinstance(constraint, JsonSchema) else "grammar"


def text_of(constraint: Constraint, around: str | None = None) -> str:
    """Return the grammar of an answer.

    `around`: a Lark grammar of the whole answer that calls the constraint `@content`; None: the
    answer is nothing else. Raises InvalidRequest.
    """
    content = _entry(constraint)
    if around is None:
        return _json([content])
    return _json([{"name": "answer", "lark_grammar": around}, content | {"name": "content"}])


def of_lark(text: str) -> str:
    """Return a Lark grammar as the grammar of an answer."""
    return _json([{"lark_grammar": text}])


def _entry(constraint: Constraint) -> dict[str, Any]:
    match constraint:
        case JsonSchema(schema):
            own = schema.get("x-guidance")
            settings = {"whitespace_pattern": JSON_SPACE, **(own if isinstance(own, dict) else {})}
            # What it cannot enforce is an error, never left out.
            return {"json_schema": schema | {"x-guidance": settings | {"lenient": False}}}
        case Regex(pattern):
            text = llguidance.LLMatcher.grammar_from_regex(pattern)
            entry: dict[str, Any] = json.loads(text)["grammars"][0]
            return entry
        case Grammar(lark):
            return {"lark_grammar": _of_gbnf(lark) if is_gbnf(lark) else lark}


def _json(grammars: list[dict[str, Any]]) -> str:
    try:
        return json.dumps({"grammars": grammars}, ensure_ascii=False)
    except RecursionError as error:
        raise InvalidRequest(
            "the JSON schema is nested too deeply", param="response_format"
        ) from error


def is_gbnf(text: str) -> bool:
    """Tell llama.cpp's notation (`root ::= …`) from Lark (`start: …`)."""
    return _RULE_OF_GBNF.search(_COMMENT.sub("", text)) is not None


def _of_gbnf(text: str) -> str:
    if len(text) > _LONGEST_GBNF:
        raise InvalidRequest(
            f"the grammar has {len(text)} characters, at most {_LONGEST_GBNF} are allowed",
            param="grammar",
        )
    # Names as the translation writes them → as the client does; it calls the root "start".
    names = {"root": "root", "start": ""}

    def mend(found: re.Match[str]) -> str:
        """Spell a part as llguidance's translation understands it."""
        if found["comment"]:
            return ""
        if found["characters"]:
            return _ESCAPE.sub(_plain, found[0])
        name = found["name"]
        if name is None:
            return found[0]
        # It tells neither `a-b` from `a_b` nor `aB` from `ab`.
        plain = re.sub(r"([a-z])([A-Z])", r"\1_\2", name.replace("-", "_")).lower()
        while names.setdefault(plain, name) != name:
            plain += "_x"
        return plain

    try:
        return gbnf_to_lark(_PARTS.sub(mend, text))
    except RecursionError as error:
        raise InvalidRequest("the grammar is nested too deeply", param="grammar") from error
    except InvalidRequest:
        raise
    except Exception as error:
        raise InvalidRequest(f"the grammar is not sound GBNF: {error}", param="grammar") from error


def _plain(found: re.Match[str]) -> str:
    """Write a character out: llguidance's translation of numbered ones is wrong in places."""
    number = found[1] or found[2] or found[3]
    if number is None:
        return found[0]
    code = int(number, 16)
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:  # noqa: PLR2004 - no characters
        raise InvalidRequest(f"the grammar has no character {found[0]}", param="grammar")
    character = chr(code)
    if character in _OF_SYNTAX or code < 0x20 or code == 0x7F:  # noqa: PLR2004 - control ones
        return f"\\x{code:02x}"
    return character
