"""Anthropic's wire forms in tests: bodies to send, and strict reading of what comes back."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64encode
from collections.abc import AsyncGenerator
from typing import Any

import httpx
from anthropic.types import RawMessageStreamEvent
from msgspec.structs import replace
from pydantic import BaseModel, TypeAdapter

from edged.plan import ModelPlan
from edged.protocol import CallDelta, Delta, Event, Finish, Generate, Messages, Started, Usage
from tests.api import media_files
from tests.api.conftest import PlayedBox, Script

PATH = "/v1/messages"
COUNT = f"{PATH}/count_tokens"
HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
WEATHER_FUNCTION = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": WEATHER["input_schema"],
    },
}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}


PNG = b64encode(media_files.image(2, 1)).decode()
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}


def body(**more: Any) -> dict[str, Any]:
    return {"model": "guide", "max_tokens": 100, "messages": HI} | more


def playing(*deltas: Delta, finish: Finish | None = None) -> Script:
    """Return a script that says these deltas."""

    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, 7)
        for delta in deltas:
            await asyncio.sleep(0)
            yield delta
        yield finish or Finish(0, "stop", Usage(7, 5, cached_tokens=3, reasoning_tokens=1))

    return script


THINKS_AND_CALLS = playing(
    Delta(0, reasoning="hm"),
    Delta(0, reasoning=" well\n"),
    Delta(0, content="Let me "),
    Delta(0, content="see \u2028\x00"),
    Delta(0, calls=[CallDelta(0, "c1", "weather"), CallDelta(0, arguments='{"city": ')]),
    Delta(0, calls=[CallDelta(0, arguments='"Oslo"}'), CallDelta(1, "c2", "time", "{}")]),
    finish=Finish(0, "tool_calls", Usage(7, 5, cached_tokens=3, reasoning_tokens=2)),
)


def strict(kind: Any, value: bytes | str) -> Any:
    """Return `value` as a published type, to the last field."""
    found = TypeAdapter(kind).validate_json(value, strict=True)
    _no_more(found)
    return found


def _no_more(value: Any) -> None:
    if isinstance(value, BaseModel):
        assert not value.model_extra, value
        for field in type(value).model_fields:
            _no_more(getattr(value, field))
    elif isinstance(value, list):
        for each in value:
            _no_more(each)


def sse(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return name and data of each event; the name is the data's type."""
    found = []
    for block in text.split("\n\n")[:-1]:
        if block == ": ping":
            continue
        name, data = re.fullmatch(r"event: (\w+)\ndata: ([^\n]+)", block).groups()  # type: ignore[union-attr]
        value = json.loads(data)
        assert value["type"] == name
        if name not in {"ping", "error"}:
            strict(RawMessageStreamEvent, data)
        found.append((name, value))
    return found


def asked(box: PlayedBox) -> Generate:
    return box.asked[-1][1]


def prompt_asked(box: PlayedBox) -> Messages:
    prompt = asked(box).prompt
    assert isinstance(prompt, Messages)
    return prompt


def messages_asked(box: PlayedBox) -> list[dict[str, Any]]:
    return prompt_asked(box).messages


def without_details(response: httpx.Response) -> dict[str, Any]:
    """Return the error but for `details`, which the published types know beside the object."""
    value: dict[str, Any] = response.json()
    value["error"] = {k: v for k, v in value["error"].items() if k != "details"}
    return value


def seeing(plan: ModelPlan) -> ModelPlan:
    """Return the plan of the same model with eyes."""
    assert plan.launch is not None
    assert plan.launch.llamacpp is not None
    settings = replace(plan.launch.llamacpp, media=("image",))
    return replace(plan, launch=replace(plan.launch, llamacpp=settings))
