"""Wire request → Generate, and the response object that tells how it was understood."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from edged import errors
from edged.api import body
from edged.api.openai import parameters
from edged.api.openai.chat import BUDGETS, thinking
from edged.api.openai.responses import schema
from edged.api.openai.responses.items import Conversation, new_id, with_types
from edged.api.openai.responses.schema import Format, Item, ResponseRequest, Tool
from edged.api.openai.responses.shape import Response
from edged.api.openai.tools import Function, FunctionTool, to_choice, to_tools
from edged.plan import ModelPlan
from edged.protocol import DEFAULTS, Constraint, Generate, JsonSchema, Messages, ToolChoice

_LONGEST_KEY = 64  # of metadata
# What the rest of the daemon calls what this dialect calls differently.
_RENAMED = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "response_format": "text.format",
    "prompt": "input",
}


class ChosenFunction(Struct, kw_only=True):
    """A tool choice that names one function, or an entry of the allowed ones."""

    type: str
    name: str | None = None


class AllowedTools(Struct, kw_only=True):
    """A tool choice that names some functions."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenFunction], Meta(min_length=1)]


def read(raw: Mapping[str, Any]) -> tuple[ResponseRequest, list[str]]:
    """Return the request, and the names in it that nobody knows, for the log.

    Raises InvalidRequest and UnsupportedParameter for what contradicts itself or cannot be.
    """
    here = schema.check_names(raw)
    ignored = parameters.check_names(here, ResponseRequest)
    wire = body.convert(with_types(here), ResponseRequest)
    parameters.check_common(wire, here)
    _check(wire)
    return wire, ignored


def _check(wire: ResponseRequest) -> None:
    if wire.truncation == "auto":
        raise errors.UnsupportedParameter(
            "`truncation: auto` is not supported: edged never cuts a conversation in silence; "
            "leave it out, and shorten the input when it is too long",
            param="truncation",
        )
    if wire.text and wire.text.verbosity not in (None, "medium"):
        raise errors.UnsupportedParameter(
            "`text.verbosity` is not supported by this version of edged; "
            "say how long the answer should be in `instructions`",
            param="text.verbosity",
        )
    if wire.prompt_cache_retention == "24h":
        raise errors.UnsupportedParameter(
            "`prompt_cache_retention: 24h` is not supported; prefixes stay while there is memory",
            param="prompt_cache_retention",
        )
    for name in ("summary", "generate_summary"):
        if wire.reasoning and getattr(wire.reasoning, name) in ("concise", "detailed"):
            raise errors.UnsupportedParameter(
                f"`reasoning.{name}` is not supported: the reasoning comes whole, as its content",
                param=f"reasoning.{name}",
            )
    if wire.top_logprobs and not wants(wire, "message.output_text.logprobs"):
        raise errors.InvalidRequest(
            '`top_logprobs` needs `include: ["message.output_text.logprobs"]`',
            param="top_logprobs",
        )
    if any(not 1 <= len(key) <= _LONGEST_KEY for key in wire.metadata or ()):
        raise errors.InvalidRequest(
            f"`metadata`: its keys have 1 to {_LONGEST_KEY} characters", param="metadata"
        )
    if wire.background and wire.store is False:
        raise errors.InvalidRequest(
            "`background` needs `store`: an answer that is not kept cannot be fetched later",
            param="background",
        )


def wants(wire: ResponseRequest, what: str) -> bool:
    """Return whether the request's `include` names this."""
    return what in (wire.include or ())


@contextlib.contextmanager
def own_names() -> Iterator[None]:
    """Let errors that come from below name parameters as this dialect does."""
    try:
        yield
    except errors.EdgedError as error:
        name = (error.param or "").partition("[")[0]
        if name in _RENAMED:  # a place inside it would be another here
            error.param = _RENAMED[name]
        raise


# ── what the model reads ──


def to_prompt(
    wire: ResponseRequest, earlier: list[Item], items: list[Item]
) -> tuple[Messages, ToolChoice]:
    """Return what the chat template gets, and which tools may be called.

    `earlier`: what the conversation was before; `items`: the request's own, resolved.
    """
    if not earlier and not items and not wire.instructions:
        raise errors.InvalidRequest("`input` is missing or empty", param="input")
    conversation = Conversation(wire.instructions)
    conversation.extend(earlier, at="previous_response_id")
    conversation.extend(items)
    tools = to_tools(_nested(wire.tools))
    prompt = Messages(
        messages=conversation.end(),
        tools=tools,
        template_kwargs=thinking(_effort(wire)) | (wire.chat_template_kwargs or {}),
    )
    return prompt, to_choice(_choice(wire.tool_choice), tools, parallel=wire.parallel_tool_calls)


def to_generate(wire: ResponseRequest, prompt: Messages, choice: ToolChoice) -> Generate:
    """Return the engine's form of the request."""
    constraint = _constraint(wire)
    if choice.mode == "required":
        constraint = None  # of the content, and there will be calls only; SDKs send both
    effort = _effort(wire)
    with_logprobs = wants(wire, "message.output_text.logprobs")
    return Generate(
        prompt=prompt,
        sampling=parameters.sampling(wire),
        max_tokens=wire.max_output_tokens,
        stop=parameters.stops(wire),
        stop_tokens=wire.stop_token_ids or [],
        constraint=constraint,
        tool_choice=choice,
        reasoning_budget=BUDGETS.get(effort) if effort else None,
        logprobs=(wire.top_logprobs or 0) if with_logprobs else None,
    )


def _effort(wire: ResponseRequest) -> str | None:
    return wire.reasoning.effort if wire.reasoning else None


def _constraint(wire: ResponseRequest) -> Constraint | None:
    found = parameters.constraint(wire)  # the field's other spellings
    said = wire.text.format if wire.text else None
    if said is None or said.type == "text":
        return found
    if found is not None:
        raise errors.InvalidRequest(
            "`text.format` and another parameter both say what the answer must look like; send one",
            param="text.format",
        )
    if said.type == "json_object":
        return JsonSchema({"type": "object"})
    for name in ("name", "schema"):
        if getattr(said, name) is None:
            raise errors.InvalidRequest(
                f"`text.format.{name}` is missing", param=f"text.format.{name}"
            )
    return JsonSchema(said.schema or {"type": "object"})


# ── tools: this dialect's flat form → the nested one ──


def _nested(wire: list[Tool] | None) -> list[FunctionTool] | None:
    if wire is None:
        return None
    names: set[str] = set()
    for i, tool in enumerate(wire):
        if tool.type != "function":
            continue  # refused by `to_tools`, with the same path
        where = f"tools[{i}].name"
        if tool.name is None:
            raise errors.InvalidRequest(f"`{where}` is missing", param=where)
        if tool.name in names:
            raise errors.InvalidRequest(f"`{where}`: {tool.name!r} is there twice", param=where)
        names.add(tool.name)
        if (tool.parameters or {}).get("type", "object") != "object":
            where = f"tools[{i}].parameters"
            raise errors.InvalidRequest(
                f"`{where}`: a schema of type `object` is wanted", param=where
            )
    return [FunctionTool(type=tool.type, function=_function(tool)) for tool in wire]


def _function(tool: Tool) -> Function | None:
    if tool.name is None:
        return None
    return Function(
        name=tool.name,
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.strict,
    )


def _choice(wire: Any) -> Any:
    if not isinstance(wire, dict):
        return wire
    if wire.get("type") == "allowed_tools":
        allowed = body.convert(wire, AllowedTools, "tool_choice")
        tools = [_named(each, f"tool_choice.tools[{i}]") for i, each in enumerate(allowed.tools)]
        return {"type": "allowed_tools", "allowed_tools": {"mode": allowed.mode, "tools": tools}}
    return _named(body.convert(wire, ChosenFunction, "tool_choice"), "tool_choice")


def _named(chosen: ChosenFunction, where: str) -> dict[str, Any]:
    if chosen.type != "function":
        raise errors.UnsupportedParameter(
            f"`{where}.type`: {chosen.type[:50]!r} is not supported; use `function`",
            param=f"{where}.type",
        )
    if chosen.name is None:
        raise errors.InvalidRequest(f"`{where}.name` is missing", param=f"{where}.name")
    return {"type": "function", "function": {"name": chosen.name}}


# ── what the response says of the request ──


def to_response(wire: ResponseRequest, plan: ModelPlan, *, store: bool) -> Response:
    """Return the response object, before anything was said."""
    sampling = parameters.sampling(wire).over(plan.model.sampling).over(DEFAULTS)
    assert sampling.temperature is not None
    assert sampling.top_p is not None
    said = wire.text.format if wire.text else None
    return Response(
        id=new_id("resp"),
        created_at=int(time.time()),
        background=bool(wire.background),
        instructions=wire.instructions,
        max_output_tokens=wire.max_output_tokens,
        max_tool_calls=wire.max_tool_calls,
        model=plan.model.name,
        output=[],
        parallel_tool_calls=wire.parallel_tool_calls is not False,
        previous_response_id=wire.previous_response_id,
        prompt_cache_key=wire.prompt_cache_key,
        reasoning={"effort": _effort(wire), "summary": None},
        safety_identifier=wire.safety_identifier,
        store=store,
        temperature=sampling.temperature,
        text={"format": _format(said), "verbosity": "medium"},
        tool_choice="auto" if wire.tool_choice is None else wire.tool_choice,
        tools=[_tool(tool) for tool in wire.tools or ()],
        top_logprobs=wire.top_logprobs or 0,
        top_p=sampling.top_p,
        user=wire.user,
        metadata=wire.metadata or {},
    )


def _format(said: Format | None) -> dict[str, Any]:
    if said is None or said.type != "json_schema":
        return {"type": said.type if said else "text"}
    return {name: value for name, value in msgspec.to_builtins(said).items() if value is not None}


def _tool(tool: Tool) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(tool)
    return found
