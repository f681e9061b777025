"""Plain values → TOML, for tests that write configurations."""

import json
from typing import Any


def to_toml(tables: dict[str, Any]) -> str:
    """Return nested tables as TOML; dicts in dicts become headers, keys are always quoted."""
    return "".join(_lines(tables, ()))


def _lines(table: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"[{'.'.join(map(quoted, path))}]\n"] if path else []
    lines += [f"{quoted(k)} = {value(v)}\n" for k, v in table.items() if not isinstance(v, dict)]
    for key, inner in table.items():
        if isinstance(inner, dict):
            lines += _lines(inner, (*path, key))
    return lines


def value(plain: Any) -> str:
    if isinstance(plain, str):
        return quoted(plain)
    if isinstance(plain, list):
        return f"[{', '.join(map(value, plain))}]"
    return json.dumps(plain)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
