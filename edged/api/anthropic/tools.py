"""Anthropic's tools and tool choice → those of `Generate`."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from edged import errors
from edged.api.anthropic import schema
from edged.api.openai.tools import MOST_TOOLS
from edged.protocol import ToolChoice

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_DIRECT = "direct"  # called by the model itself, not from code that it wrote


def to_tools(wire: list[schema.Tool] | None) -> list[dict[str, Any]] | None:
    """Return the tools as chat templates read them, None for none.

    Raises UnsupportedParameter for tools of Anthropic's own, InvalidRequest for what is no tool.
    """
    if not wire:
        return None
    if len(wire) > MOST_TOOLS:
        raise errors.InvalidRequest(
            f"`tools`: {len(wire)} tools, at most {MOST_TOOLS} are allowed", param="tools"
        )
    found: dict[str, dict[str, Any]] = {}
    for i, tool in enumerate(wire):
        where = f"tools[{i}]"
        _check(tool, where)
        if tool.name in found:
            raise errors.InvalidRequest(
                f"`{where}.name`: {tool.name!r} is there twice", param=f"{where}.name"
            )
        found[tool.name] = {"type": "function", "function": _function(tool)}
    return list(found.values())


def _check(tool: schema.Tool, where: str) -> None:
    if tool.type not in (None, "custom"):
        raise errors.UnsupportedParameter(
            f"`{where}.type`: {tool.type[:50]!r} is a tool of Anthropic's own, which edged does "
            "not have; describe one that you run, with `name` and `input_schema`",
            param=f"{where}.type",
        )
    if not _NAME.fullmatch(tool.name):
        raise errors.InvalidRequest(
            f"`{where}.name`: 1 to 128 letters, digits, `_` and `-` are allowed",
            param=f"{where}.name",
        )
    if tool.input_schema is None:
        raise errors.InvalidRequest(
            f"`{where}.input_schema` is missing", param=f"{where}.input_schema"
        )
    if tool.input_schema.get("type", "object") != "object":
        raise errors.InvalidRequest(
            f"`{where}.input_schema`: a schema of type `object` is wanted",
            param=f"{where}.input_schema",
        )
    if tool.defer_loading:
        raise errors.UnsupportedParameter(
            f"`{where}.defer_loading`: edged shows all tools to the model; leave it out",
            param=f"{where}.defer_loading",
        )
    if tool.allowed_callers is not None and _DIRECT not in tool.allowed_callers:
        raise errors.UnsupportedParameter(
            f"`{where}.allowed_callers`: only the model itself can call tools here",
            param=f"{where}.allowed_callers",
        )


def _function(tool: schema.Tool) -> dict[str, Any]:
    found: dict[str, Any] = {"name": tool.name}
    description = tool.description
    if tool.input_examples:  # no template has another place for them
        examples = [msgspec.json.encode(each).decode() for each in tool.input_examples]
        description = "\n".join([description or "", "Examples of its input:", *examples]).strip()
    if description is not None:
        found["description"] = description
    found["parameters"] = tool.input_schema or {"type": "object", "properties": {}}
    if tool.strict is not None:
        found["strict"] = tool.strict
    return found


def to_choice(wire: schema.Prompted, tools: list[dict[str, Any]] | None) -> ToolChoice:
    """Return what `tool_choice` asks for.

    Raises InvalidRequest when it does not fit the tools.
    """
    choice = wire.tool_choice
    if choice is None:
        return ToolChoice()
    if isinstance(choice, schema.NoChoice):
        return ToolChoice("none")
    parallel = not choice.disable_parallel_tool_use
    if isinstance(choice, schema.AutoChoice):
        return ToolChoice("auto", parallel=parallel)
    if not tools:
        raise errors.InvalidRequest(
            "`tool_choice` asks for a call, but `tools` is empty", param="tool_choice"
        )
    if isinstance(choice, schema.AnyChoice):
        return ToolChoice("required", parallel=parallel)
    if all(tool["function"]["name"] != choice.name for tool in tools):
        raise errors.InvalidRequest(
            f"`tool_choice.name`: no tool is called {choice.name[:64]!r}", param="tool_choice.name"
        )
    return ToolChoice("required", [choice.name], parallel=parallel)
