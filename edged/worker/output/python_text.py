"""Values in Python's notation, as some families write arguments, to JSON."""

from __future__ import annotations

import ast
import json
from typing import Any

from edged.worker.output.schema import loads
from edged.worker.output.source import Reading, Source

_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_NAMES = {"true": True, "false": False, "null": None}


def value(source: Source) -> Reading[str | None]:
    """Read a value up to the comma or bracket after it; return its JSON, None if it is none."""
    parts: list[str] = []
    closers: list[str] = []
    quote = ""
    while character := (yield from source.peek()):
        if quote:
            if character == "\\":
                parts.append(source.take(1))
                yield from source.peek()
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif character in _CLOSERS:
            closers.append(_CLOSERS[character])
        elif closers and character == closers[-1]:
            closers.pop()
        elif character in ")]}" or (character == "," and not closers):
            return _json("".join(parts).strip())
        parts.append(source.take(1))
    return None


def _json(text: str) -> str | None:
    try:
        loads(text)
    except (ValueError, RecursionError):
        pass
    else:
        return text
    try:
        found = _read(ast.parse(text, mode="eval").body)
        return json.dumps(found, ensure_ascii=False, allow_nan=False)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _read(node: ast.expr) -> Any:
    """Return the value of a literal; raises ValueError for anything else."""
    match node:
        case ast.Constant(value=str() | int() | float() | None as found):
            return found
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_read(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {str(_read(k)): _read(v) for k, v in zip(keys, values, strict=True) if k}
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_read(operand)
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
    raise ValueError("no literal")
