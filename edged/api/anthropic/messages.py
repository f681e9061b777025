"""`POST /v1/messages` and `/v1/messages/count_tokens`: wire request → Generate.

The way back is in `reply.py`.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, post
from litestar.types import ASGIApp

from edged import errors
from edged.api import adapters, body, media
from edged.api.anthropic.prompt import to_messages
from edged.api.anthropic.reply import MessagesReply
from edged.api.anthropic.schema import (
    REFUSED,
    Adaptive,
    BetweenTools,
    Disabled,
    Enabled,
    JsonFormat,
    MessagesRequest,
    Prompted,
)
from edged.api.anthropic.tools import to_choice, to_tools
from edged.api.call import Json, call
from edged.api.entry import Entry, differs
from edged.api.events import Answer
from edged.api.openai.chat import BUDGETS
from edged.api.openai.parameters import check_names
from edged.protocol import (
    Generate,
    JsonSchema,
    Messages,
    Render,
    Rendered,
    Sampling,
    ToolChoice,
)

_HIGHEST = "high"  # templates and budgets know no more


@post("/v1/messages", status_code=200)
async def create(request: Request[Any, Any, Any]) -> ASGIApp:
    """Answer a conversation, whole or streamed."""
    entry = await Entry.of(request)
    if (upstream := entry.upstream("/messages")) is not None:
        return upstream
    entry.exchange.ignored_fields = check_names(entry.raw, MessagesRequest, REFUSED)
    wire = body.convert(entry.raw, MessagesRequest)
    entry.exchange.stream = bool(wire.stream)
    thinking = wire.thinking
    reply = MessagesReply(
        entry.model,
        request_id=entry.exchange.id,
        max_tokens=wire.max_tokens,
        omit_thinking=isinstance(thinking, Enabled | Adaptive) and thinking.display == "omitted",
    )
    generate = adapters.dressed(entry, to_generate(wire), wire.lora)
    generate = await media.loaded(entry, generate)
    return Answer(entry.box, entry.model, [generate], reply, stream=bool(wire.stream))


@post("/v1/messages/count_tokens", status_code=200)
async def count_tokens(request: Request[Any, Any, Any]) -> ASGIApp:
    """Count the tokens that the same request to `/v1/messages` would have."""
    entry = await Entry.of(request)
    if (upstream := entry.upstream("/messages/count_tokens")) is not None:
        return upstream
    entry.exchange.ignored_fields = check_names(entry.raw, MessagesRequest, REFUSED)
    prompt, _ = to_prompt(body.convert(entry.raw, Prompted))
    wanted = Render(await media.load(entry, prompt))
    rendered = await call(request, entry.model, wanted, Rendered)
    return Json({"input_tokens": rendered.n_tokens})


def to_generate(wire: MessagesRequest) -> Generate:
    """Return the engine's form of a request.

    Raises InvalidRequest or UnsupportedParameter for what contradicts itself.
    """
    prompt, choice = to_prompt(wire)
    form = _format(wire)
    if choice.mode == "required":
        form = None  # of the content, and there will be calls only
    if isinstance(wire.thinking, Enabled) and wire.thinking.budget_tokens >= wire.max_tokens:
        raise errors.InvalidRequest(
            "`thinking.budget_tokens` counts as part of `max_tokens` and must be less",
            param="thinking.budget_tokens",
        )
    return Generate(
        prompt=prompt,
        sampling=Sampling(
            temperature=wire.temperature,
            top_p=wire.top_p,
            top_k=wire.top_k,
            min_p=wire.min_p,
            repeat_penalty=wire.repeat_penalty,
            seed=wire.seed,
            ignore_eos=wire.ignore_eos,
        ),
        max_tokens=wire.max_tokens,
        stop=wire.stop_sequences or [],
        constraint=JsonSchema(form.schema) if form else None,
        tool_choice=choice,
        reasoning_budget=_budget(wire),
    )


def to_prompt(wire: Prompted) -> tuple[Messages, ToolChoice]:
    """Return what the chat template gets, and which tools may be called."""
    tools = to_tools(wire.tools)
    choice = to_choice(wire, tools)
    messages = to_messages(wire)
    prompt = Messages(
        messages=messages,
        tools=None if choice.mode == "none" else tools,
        template_kwargs=_thinking(wire) | (wire.chat_template_kwargs or {}),
        continue_last=messages[-1]["role"] == "assistant",
    )
    return prompt, choice


def _format(wire: Prompted) -> JsonFormat | None:
    form = wire.output_config.format if wire.output_config else None
    if differs(form, wire.output_format):
        raise errors.InvalidRequest(
            "`output_config.format` and `output_format` mean the same and differ",
            param="output_format",
        )
    return form or wire.output_format


def _effort(wire: Prompted) -> str | None:
    effort = wire.output_config.effort if wire.output_config else None
    return _HIGHEST if effort in ("xhigh", "max") else effort


def _thinking(wire: Prompted) -> dict[str, Any]:
    """Return what templates are told; silence leaves them their own way."""
    found: dict[str, Any] = {}
    if (effort := _effort(wire)) is not None:
        found["reasoning_effort"] = effort
    if isinstance(wire.thinking, BetweenTools):
        raise errors.UnsupportedParameter(
            "`thinking.type`: `between_tools` is not supported; use `enabled`, `adaptive` or "
            "`disabled`",
            param="thinking.type",
        )
    if wire.thinking is not None:
        found["enable_thinking"] = not isinstance(wire.thinking, Disabled)
    return found


def _budget(wire: Prompted) -> int | None:
    """Return how many tokens the model may think, None for no limit."""
    if isinstance(wire.thinking, Disabled):
        return 0
    if isinstance(wire.thinking, Enabled):
        return wire.thinking.budget_tokens
    effort = _effort(wire)
    return BUDGETS[effort] if effort else None
