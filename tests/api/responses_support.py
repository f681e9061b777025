"""Responses in tests: the SDK's strict view of them, requests, and scripts of models."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from edged.protocol import (
    CallDelta,
    Chosen,
    Delta,
    Event,
    Failed,
    Finish,
    Generate,
    Likelihood,
    Messages,
    Started,
    Usage,
)
from tests.api.conftest import PlayedBox

PATH = "/v1/responses"
TEXT = "Hello, wörld\n\n\u2028\x00"
OWN = {"Response": {"store", "timings"}}  # `store` is in OpenAI's replies, not in its types
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
CALL = {
    "type": "function_call",
    "call_id": "call_1",
    "name": "weather",
    "arguments": '{"city":"Oslo"}',
}
RETURNED = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}


# ── what the SDK makes of it ──


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def strictly(kind: Any, body: bytes | str) -> dict[str, Any]:
    """Return the JSON of `body` after checking that it is a published `kind`, and no more."""
    _no_more(_adapter(kind).validate_json(body, strict=True))
    found: dict[str, Any] = json.loads(body)
    return found


def _no_more(value: Any) -> None:
    if isinstance(value, list):
        for each in value:
            _no_more(each)
    elif isinstance(value, BaseModel):
        name = type(value).__name__
        more = set(value.model_extra or ()) - OWN.get(name, set())
        assert not more, f"{name} has {more}"
        for field in type(value).model_fields:
            _no_more(getattr(value, field))


def told(body: str) -> list[dict[str, Any]]:
    """Return the events of a stream, each strictly as published, numbered from 0."""
    found = []
    for block in body.split("\n\n"):
        if not block or block.startswith(":"):
            continue
        name, data = block.split("\n")
        event = strictly(ResponseStreamEvent, data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def asks(**more: Any) -> dict[str, Any]:
    return {"model": "guide", "input": "hi"} | more


async def ask(http: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    response = await http.post(PATH, json=asks(**more))
    assert response.status_code == 200, response.text
    return strictly(Response, response.text)


async def events(http: httpx.AsyncClient, **more: Any) -> list[dict[str, Any]]:
    response = await http.post(PATH, json=asks(**more, stream=True))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return told(response.text)


async def refused(http: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    response = await http.post(PATH, json=asks(**more))
    assert response.status_code == 400, response.text
    found: dict[str, Any] = response.json()["error"]
    return found


def prompt(box: PlayedBox) -> Messages:
    found = box.asked[-1][1].prompt
    assert isinstance(found, Messages)
    return found


# ── scripts ──


async def calling(request: Generate) -> AsyncGenerator[Event, None]:
    """Think, say something, call two functions."""
    yield Started(request.id, 5)
    yield Delta(request.id, reasoning="which ")
    yield Delta(request.id, reasoning="city?", content="Let me ")
    yield Delta(request.id, content="see.")
    yield Delta(request.id, calls=[CallDelta(0, "call_a", "weather")])
    yield Delta(request.id, calls=[CallDelta(0, arguments='{"city":')])
    yield Delta(
        request.id,
        calls=[CallDelta(0, arguments='"Oslo"}'), CallDelta(1, "call_b", "weather", "{}")],
    )
    yield Finish(request.id, "tool_calls", Usage(5, 9, 0, 2))


async def cut(request: Generate) -> AsyncGenerator[Event, None]:
    yield Started(request.id, 5)
    yield Delta(request.id, content="Once upon")
    yield Finish(request.id, "length", Usage(5, 2))


async def silent(request: Generate) -> AsyncGenerator[Event, None]:
    yield Started(request.id, 5)
    yield Finish(request.id, "stop", Usage(5, 1))


async def crashing(request: Generate) -> AsyncGenerator[Event, None]:
    yield Started(request.id, 5)
    yield Delta(request.id, content="Once upon")
    await asyncio.sleep(0.01)
    yield Failed(request.id, "worker_crashed", "the worker died")


async def likely(request: Generate) -> AsyncGenerator[Event, None]:
    """Say `é` in two tokens, then `!`."""
    yield Started(request.id, 5)
    halves = [
        Chosen(1, b"\xc3", -0.5, [Likelihood(1, b"\xc3", -0.5), Likelihood(2, b"e", -1.0)]),
        Chosen(3, b"\xa9", 0.0, []),
    ]
    yield Delta(request.id, logprobs=halves[:1])
    yield Delta(request.id, content="é", logprobs=halves[1:])
    yield Delta(request.id, content="!", logprobs=[Chosen(4, b"!", -0.25, [])])
    yield Finish(request.id, "stop", Usage(5, 3))


class Gate:
    """A script that waits in the middle of its answer until it is let through."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.reached = asyncio.Event()
        self.aborted = False

    async def __call__(self, request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, 5)
        yield Delta(request.id, content="Once ")
        self.reached.set()
        try:
            await self.open.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted = True
            raise
        yield Delta(request.id, content="upon")
        yield Finish(request.id, "stop", Usage(5, 2))


def types(found: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in found]


async def first_block(response: httpx.Response) -> str:
    text = ""
    async for piece in response.aiter_text():
        text += piece
        if "\n\n" in text:
            return text[: text.index("\n\n") + 2]
    raise AssertionError(text)
