"""The part of JSON schema that these tests use, written apart from the code that is tested."""

from __future__ import annotations

import re
from typing import Any

TYPES: dict[str, Any] = {
    "string": str,
    "array": list,
    "object": dict,
    "boolean": bool,
    "null": type(None),
}


def breaches(  # noqa: PLR0911 - one for each keyword
    value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None
) -> list[str]:
    """Return what of `schema` the value breaks."""
    root = root or schema
    if "$ref" in schema:
        target: Any = root
        for step in schema["$ref"].split("/")[1:]:
            target = target[step]
        return breaches(value, target, root)
    if "anyOf" in schema and all(breaches(value, one, root) for one in schema["anyOf"]):
        return [f"{value!r} is none of anyOf"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{value!r} is none of {schema['enum']}"]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return [f"{value!r} is no {kinds}"]
    match value:
        case str():
            return _string(value, schema)
        case int() | float() if not isinstance(value, bool):
            good = schema.get("minimum", value) <= value <= schema.get("maximum", value)
            return [] if good else [f"{value} is out of range"]
        case list():
            few = len(value) <= schema.get("maxItems", 1 << 40)
            inside = [b for item in value for b in breaches(item, schema.get("items", {}), root)]
            return inside if few else ["too many items", *inside]
        case dict():
            return _object(value, schema, root)
    return []


def _string(value: str, schema: dict[str, Any]) -> list[str]:
    broken = {
        "minLength": len(value) < schema.get("minLength", 0),
        "maxLength": len(value) > schema.get("maxLength", 1 << 40),
        "pattern": not re.search(schema.get("pattern", ""), value),
    }
    return [f"{value!r} breaks {key}" for key, is_broken in broken.items() if is_broken]


def _object(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any]) -> list[str]:
    properties = schema.get("properties", {})
    found = [f"{key} is missing" for key in schema.get("required", []) if key not in value]
    if schema.get("additionalProperties") is False:
        found += [f"{key} is unknown" for key in value if key not in properties]
    for key, item in value.items():
        found += breaches(item, properties.get(key, {}), root)
    return found


def _is(value: Any, kind: str) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, TYPES[kind])
