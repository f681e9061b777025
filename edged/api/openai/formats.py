"""Structured output: the many spellings of "the answer must look like this" → one Constraint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from edged import errors
from edged.api import body
from edged.protocol import Constraint, Grammar, JsonSchema, Regex

_ANY_OBJECT = JsonSchema({"type": "object"})
_MOST_CHOICES = 1024


class SchemaFormat(Struct, kw_only=True):
    """Of a response format: a schema with a name."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True):
    """`response_format`. llama-server's `schema` beside json_object is known as well."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None
    schema: dict[str, Any] | None = None


class StructuredOutputs(Struct, kw_only=True):
    """vLLM's way to say it: exactly one of these."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


def to_constraint(
    *,
    response_format: Any = None,
    json_schema: dict[str, Any] | None = None,
    grammar: str | None = None,
    structured_outputs: StructuredOutputs | None = None,
    guided_json: dict[str, Any] | str | None = None,
    guided_regex: str | None = None,
    guided_choice: list[str] | None = None,
    guided_grammar: str | None = None,
) -> Constraint | None:
    """Return what the answer must obey, None for free text.

    Raises InvalidRequest for a format that says nothing sound, or for two of them.
    """
    outputs = structured_outputs or StructuredOutputs()
    said: list[tuple[str, Any, Callable[[Any, str], Constraint | None]]] = [
        ("response_format", response_format, _of_response_format),
        ("json_schema", json_schema or None, _schema),
        ("grammar", grammar or None, _grammar),
        ("guided_json", guided_json, _schema),
        ("guided_regex", guided_regex, _regex),
        ("guided_choice", guided_choice, _one_of),
        ("guided_grammar", guided_grammar, _grammar),
        ("structured_outputs.json", outputs.json, _schema),
        ("structured_outputs.regex", outputs.regex, _regex),
        ("structured_outputs.choice", outputs.choice, _one_of),
        ("structured_outputs.grammar", outputs.grammar, _grammar),
        ("structured_outputs.json_object", outputs.json_object or None, _any_object),
    ]
    found = {
        name: constraint
        for name, value, read in said
        if value is not None and (constraint := read(value, name)) is not None
    }
    if len(found) > 1:
        first, second, *_ = found
        raise errors.InvalidRequest(
            f"`{first}` and `{second}` both say what the answer must look like; send one",
            param=second,
        )
    return next(iter(found.values()), None)


def _of_response_format(said: Any, name: str) -> Constraint | None:
    wire = body.convert(said, ResponseFormat, name)
    if wire.type == "text":
        return None
    if wire.type == "json_object":
        return JsonSchema(wire.schema) if wire.schema else _ANY_OBJECT
    if wire.json_schema is None and wire.schema is None:
        raise errors.InvalidRequest(f"`{name}.json_schema` is missing", param=f"{name}.json_schema")
    schema = wire.json_schema.schema if wire.json_schema else wire.schema
    return JsonSchema(schema) if schema else _ANY_OBJECT


def _schema(said: dict[str, Any] | str, name: str) -> JsonSchema:
    if isinstance(said, dict):
        return JsonSchema(said)
    try:
        schema = json.loads(said)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise errors.InvalidRequest(f"`{name}`: expected a JSON schema", param=name)
    return JsonSchema(schema)


def _grammar(text: str, _name: str) -> Grammar:
    return Grammar(text)


def _regex(pattern: str, _name: str) -> Regex:
    return Regex(pattern)


def _any_object(_said: bool, _name: str) -> JsonSchema:
    return _ANY_OBJECT


def _one_of(choices: list[str], name: str) -> Regex:
    if not choices or len(choices) > _MOST_CHOICES or not all(choices):
        raise errors.InvalidRequest(
            f"`{name}`: expected 1 to {_MOST_CHOICES} texts, none of them empty", param=name
        )
    return Regex("|".join(re.escape(choice) for choice in choices))
