"""JSON that arrives in pieces: how far it is JSON, and where it ends.

Strict but for one repair: control characters inside strings, which models like to leave bare, come
out as escapes. So whatever comes out is a beginning of JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from edged.worker.output.source import Reading, Source

_DEPTH = 256
_SPACE = re.compile(r"[ \t\n\r]+")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_WORD = re.compile(r"[-+.0-9A-Za-z]+")
_SCALAR = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?|true|false|null", re.ASCII)
_HEX = re.compile(r"[0-9a-fA-F]{4}")


def value(source: Source, push: Callable[[str], None]) -> Reading[bool]:
    """Read one JSON value and push its text as it comes; False if it is none or not whole.

    In a loop, not by recursion: nesting costs no stack.
    """
    closers: list[str] = []
    while True:
        due = yield from _start(source, push, closers)
        if due is None:
            return False
        if due:
            continue
        while closers:  # a value is over, perhaps with what it stands in
            following = yield from _gap(source, push)
            if following != closers[-1]:
                break
            push(source.take(1))
            closers.pop()
        if not closers:
            return True
        if following != ",":
            return False
        push(source.take(1))
        if closers[-1] == "}":
            yield from _gap(source, push)
            if not (yield from _key(source, push)):
                return False


def _start(source: Source, push: Callable[[str], None], closers: list[str]) -> Reading[bool | None]:
    """Read a scalar, or the beginning of what holds values.

    True: a value is due in it. False: it is whole, or empty but for its end. None: no JSON.
    """
    start = yield from _gap(source, push)
    if start == '"':
        return False if (yield from string(source, push)) else None
    if not start or start not in "{[":
        return False if (yield from _scalar(source, push)) else None
    push(source.take(1))
    closers.append("}" if start == "{" else "]")
    if len(closers) > _DEPTH:
        return None
    if (yield from _gap(source, push)) == closers[-1]:
        return False
    if start == "[":
        return True
    return True if (yield from _key(source, push)) else None


def string(source: Source, push: Callable[[str], None]) -> Reading[bool]:
    """Read a JSON string, with its quotes."""
    if not (yield from source.tag('"')):
        return False
    push('"')
    while True:
        match = _PLAIN.match(source.text, source.at)
        if match:
            push(source.take(len(match[0])))
        next_ = yield from source.peek()
        if next_ == '"':
            push(source.take(1))
            return True
        if next_ == "\\":
            if not (yield from _escape(source, push)):
                return False
        elif next_ and next_ < " ":
            push(json.dumps(source.take(1))[1:-1])
        elif not next_:
            return False


def text_of(source: Source, *, limit: int) -> Reading[str | None]:
    """Read a short JSON string; None if it is none."""
    parts: list[str] = []
    whole = yield from string(source, parts.append)
    if not whole or sum(map(len, parts)) > limit:
        return None
    found = json.loads("".join(parts))
    assert isinstance(found, str)
    return found


def _gap(source: Source, push: Callable[[str], None]) -> Reading[str]:
    while True:
        match = _SPACE.match(source.text, source.at)
        if match:
            push(source.take(len(match[0])))
        if not source.empty:
            return source.text[source.at]
        if not (yield from source.more()):
            return ""


def _key(source: Source, push: Callable[[str], None]) -> Reading[bool]:
    if not (yield from string(source, push)):
        return False
    if (yield from _gap(source, push)) != ":":
        return False
    push(source.take(1))
    return True


def _escape(source: Source, push: Callable[[str], None]) -> Reading[bool]:
    """Read an escape whole: half a one would be no beginning of JSON for a reader that closes."""
    while source.left < 2:  # noqa: PLR2004 - the backslash and its letter
        if not (yield from source.more()):
            return False
    letter = source.text[source.at + 1]
    if letter != "u":
        if letter not in '"\\/bfnrt':
            return False
        push(source.take(2))
        return True
    while source.left < 6:  # noqa: PLR2004 - \uXXXX
        if not (yield from source.more()):
            return False
    if not _HEX.match(source.text, source.at + 2):
        return False
    push(source.take(6))
    return True


def _scalar(source: Source, push: Callable[[str], None]) -> Reading[bool]:
    """Read a number or a word; only its end tells whether it is one."""
    parts: list[str] = []
    while True:
        match = _WORD.match(source.text, source.at)
        if match:
            parts.append(source.take(len(match[0])))
        if not source.empty or not (yield from source.more()):
            break
    word = "".join(parts)
    if not _SCALAR.fullmatch(word):
        return False
    push(word)
    return True
