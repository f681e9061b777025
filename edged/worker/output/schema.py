"""What a tool's JSON schema says about one parameter: may it be a string, what else may it be.

Values in XML-like calls are bare text, and only the schema tells `42` the number from `42` the
string.
"""

from __future__ import annotations

import json
from typing import Any

Schema = dict[str, Any]

_LITERALS = {"True": "true", "False": "false", "None": "null"}
_DEPTH = 16  # of references and unions, so that one that refers to itself ends


def parameters_of(tool: dict[str, Any]) -> Schema:
    """Return the schema of a tool's arguments; one that says nothing is any object."""
    schema = tool["function"].get("parameters")
    return schema if isinstance(schema, dict) else {}


def properties_of(schema: Schema) -> dict[str, Schema]:
    """Return the parameters by name."""
    properties = resolve(schema, schema).get("properties")
    if not isinstance(properties, dict):
        return {}
    return {k: v if isinstance(v, dict) else {} for k, v in properties.items()}


def resolve(schema: Schema, root: Schema) -> Schema:
    """Follow `$ref` inside `root`; what leads nowhere says nothing."""
    for _ in range(_DEPTH):
        target = schema.get("$ref")
        if not isinstance(target, str):
            break
        found: Any = root
        for step in target.removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            return {}
        schema = found
    return schema


def alternatives(schema: Schema, root: Schema, depth: int = 0) -> list[Schema]:
    """Return the schemas that a value may follow, each of one type (or of none that is told)."""
    schema = resolve(schema, root)
    for union in ("anyOf", "oneOf"):
        branches = schema.get(union)
        if isinstance(branches, list) and depth < _DEPTH:
            found = [b for b in branches if isinstance(b, dict)]
            return [one for b in found for one in alternatives(b, root, depth + 1)]
    if isinstance(schema.get("type"), list):
        return [{**schema, "type": one} for one in schema["type"]]
    if "type" not in schema and ("enum" in schema or "const" in schema):
        values = schema.get("enum", [schema.get("const")])
        strings = [v for v in values if isinstance(v, str)]
        others = [v for v in values if not isinstance(v, str)]
        text: list[Schema] = [{"type": "string", "enum": strings}] if strings else []
        return text + ([{"enum": others}] if others else [])
    return [schema]


def is_text(schema: Schema, root: Schema) -> bool:
    """Return whether every value of this schema is a string."""
    found = alternatives(schema, root)
    return bool(found) and all(one.get("type") == "string" for one in found)


def as_json(text: str, schema: Schema, root: Schema) -> str:
    """Return the JSON of a bare value: a string if the schema calls it one, else what it reads as.

    Text that is no JSON becomes a string, whatever the schema says: the client sees what the model
    wrote.
    """
    kinds = {one.get("type") for one in alternatives(schema, root)}
    if kinds != {"string"}:
        value = _LITERALS.get(text.strip(), text.strip())
        try:
            read = loads(value)
        except (ValueError, RecursionError):
            pass
        else:
            if "string" not in kinds or _kind(read) & kinds:
                return value
    return json.dumps(text, ensure_ascii=False)


def loads(text: str) -> Any:
    """Read JSON for its types only: numbers are 0, however long. Raises ValueError as json does."""
    return json.loads(
        text, parse_constant=_refuse, parse_int=lambda _: 0, parse_float=lambda _: 0.0
    )


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _kind(value: object) -> set[str | None]:
    """Return the names that JSON schema has for the type of `value`."""
    if isinstance(value, bool):  # also an int
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    names = {float: "number", list: "array", dict: "object", type(None): "null"}
    return {names.get(type(value))}
