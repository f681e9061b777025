"""Regular expressions in grammars: Rust's syntax between slashes.

A string in an XML-like call is bare text up to its closing tag, so what its schema asks becomes a
regular expression. None of these matches "<": no end of the value can hide in it.
"""

from __future__ import annotations

import re
from typing import Any

_DAY = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_TIME = (
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_FORMATS = {
    "date": _DAY,
    "time": _TIME,
    "date-time": f"{_DAY}T{_TIME}",
    "uuid": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "email": r"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9]+([.-][A-Za-z0-9]+)*",
}
# What Rust's automata have not: looking around, references, borders inside a pattern.
_BEYOND = re.compile(r"\(\?[=!<]|\\[1-9bBAzZ]|(?<![\\\[])[\^$]")


def slashed(pattern: str) -> str:
    """Return a pattern as it may stand between slashes."""
    return re.sub(r"(?<!\\)/", r"\\/", pattern)


def escaped(text: str) -> str:
    """Return a pattern, as it may stand between slashes, that matches `text` only."""
    special = set("\\.+*?()|[]{}^$#&-~/")
    return "".join(f"\\{c}" if c in special else {"\n": "\\n"}.get(c, c) for c in text)


def bare_text(schema: dict[str, Any], *, strict: bool) -> list[str]:
    """Return the expressions that a string of `schema` has to match, all of them; empty: any text.

    Formats that are not in the table are not enforced here. A pattern that cannot be is left out
    unless `strict`: then it fails when the grammar is compiled.
    """
    found = []
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and (whole := _whole(pattern, strict=strict)):
        found.append(f"/{whole}/")
    if known := _FORMATS.get(str(schema.get("format"))):
        found.append(f"/{slashed(known)}/")
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    if found or least or most != "":
        found.append(f"/[^<]{{{least},{most}}}/")
    return found


def _whole(pattern: str, *, strict: bool) -> str:
    """Return a pattern of JSON schema, which may match anywhere, as one of the whole text."""
    before = "" if pattern.startswith("^") else "[^<]*"
    after = "" if re.search(r"(?<!\\)\$$", pattern) else "[^<]*"
    body = pattern.removeprefix("^")
    body = body if after else body.removesuffix("$")
    if _BEYOND.search(body) and not strict:
        return ""
    return f"{before}({slashed(body)}){after}"
