"""Tools of a request: what may be called, and whether it must be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from edged import errors
from edged.api import body
from edged.protocol import ToolChoice

MOST_TOOLS = 128

Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(Struct, kw_only=True):
    """What a tool is called and what it takes. `parameters`: a JSON schema of an object."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Struct, kw_only=True):
    """A function that the client runs."""

    type: str = "function"
    function: Function | None = None


class NamedFunction(Struct):
    """Of a tool choice."""

    name: str


class Named(Struct, kw_only=True):
    """A tool choice that names one function, or an entry of the allowed ones."""

    type: str
    function: NamedFunction | None = None


class Allowed(Struct, kw_only=True):
    """Of a tool choice: only these."""

    mode: Literal["auto", "required"]
    tools: list[Named]


class AllowedTools(Struct, kw_only=True):
    """A tool choice that names some functions."""

    type: Literal["allowed_tools"]
    allowed_tools: Allowed


def to_tools(wire: list[FunctionTool] | None) -> list[dict[str, Any]] | None:
    """Return the tools as chat templates read them, None for none.

    Raises UnsupportedParameter for tools that are no functions, InvalidRequest for two of one name.
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
        if tool.type != "function":
            raise errors.UnsupportedParameter(
                f"`{where}.type`: {tool.type[:50]!r} is not supported; "
                "edged knows tools of type `function`",
                param=f"{where}.type",
            )
        function = tool.function
        if function is None:
            raise errors.InvalidRequest(f"`{where}.function` is missing", param=f"{where}.function")
        if function.name in found:
            raise errors.InvalidRequest(
                f"`{where}.function.name`: {function.name!r} is there twice",
                param=f"{where}.function.name",
            )
        found[function.name] = {"type": "function", "function": _described(function, where)}
    return list(found.values())


def _described(function: Function, where: str) -> dict[str, Any]:
    schema = function.parameters
    if schema is not None and schema.get("type", "object") != "object":
        raise errors.InvalidRequest(
            f"`{where}.function.parameters`: a schema of type `object` is wanted",
            param=f"{where}.function.parameters",
        )
    described: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        described["description"] = function.description
    # Templates print what stands here: a function without parameters takes an empty object.
    described["parameters"] = schema or {"type": "object", "properties": {}}
    if function.strict is not None:
        described["strict"] = function.strict
    return described


def to_choice(
    wire: Any, tools: list[dict[str, Any]] | None, *, parallel: bool | None = None
) -> ToolChoice:
    """Return what `tool_choice` and `parallel_tool_calls` ask for.

    Raises InvalidRequest when it is no tool choice, or does not fit the tools.
    """
    mode, names = _read(wire)
    if mode != "none" and not tools and wire not in (None, "auto"):
        raise errors.InvalidRequest(
            "`tool_choice` asks for a call, but `tools` is empty", param="tool_choice"
        )
    there = {tool["function"]["name"] for tool in tools or ()}
    missing = next((name for name in names if name not in there), None)
    if missing is not None:
        raise errors.InvalidRequest(
            f"`tool_choice`: no tool is called {missing[:64]!r}", param="tool_choice"
        )
    return ToolChoice(mode, names, parallel=parallel is not False)


def _read(wire: Any) -> tuple[Literal["none", "auto", "required"], list[str]]:
    if wire is None:
        return "auto", []
    if wire in ("none", "auto", "required"):
        return wire, []
    if isinstance(wire, dict) and wire.get("type") == "allowed_tools":
        allowed = body.convert(wire, AllowedTools, "tool_choice").allowed_tools
        if not allowed.tools:
            raise errors.InvalidRequest(
                "`tool_choice.allowed_tools.tools` is empty; for no tools say `none`",
                param="tool_choice.allowed_tools.tools",
            )
        return allowed.mode, [_name(each) for each in allowed.tools]
    if isinstance(wire, dict):
        return "required", [_name(body.convert(wire, Named, "tool_choice"))]
    raise errors.InvalidRequest(
        "`tool_choice`: expected `none`, `auto`, `required` or an object that names a function",
        param="tool_choice",
    )


def _name(named: Named) -> str:
    if named.type != "function":
        raise errors.UnsupportedParameter(
            f"`tool_choice`: type {named.type[:50]!r} is not supported; use `function`",
            param="tool_choice",
        )
    if named.function is None:
        raise errors.InvalidRequest(
            "`tool_choice.function` is missing", param="tool_choice.function"
        )
    return named.function.name


def arguments_of(text: str) -> Any:
    """Return the arguments of an earlier call as an object, which is what templates expect.

    What is no JSON stays the text that it is.
    """
    try:
        return msgspec.json.decode(text or "{}")
    except (msgspec.MsgspecError, RecursionError):
        return text
