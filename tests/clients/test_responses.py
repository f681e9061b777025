"""The newest openai SDK's Responses client over a running daemon with edge-guide."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types.responses import (
    FunctionToolParam,
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseStreamEvent,
    ResponseTextDeltaEvent,
)
from pydantic import BaseModel, TypeAdapter

from tests.clients.conftest import CONTEXT, LIMIT_S, eventually

MODEL = "edge-guide"
QUESTION = "What is edged?"
TOOL: FunctionToolParam = {
    "type": "function",
    "name": "forecast",
    "description": "Tells the weather.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Oslo", "Rome"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Trip(BaseModel):
    city: Literal["Oslo", "Rome"]  # no endless numbers: a small model writes what it likes
    days: Literal[1, 2, 3]


def test_answer_is_whole_kept_and_deleted(sdk: openai.OpenAI) -> None:
    reply = sdk.responses.create(model=MODEL, input=QUESTION, max_output_tokens=60)
    assert "edged" in reply.output_text
    assert reply.status in {"completed", "incomplete"}
    assert reply.usage is not None
    assert 0 < reply.usage.output_tokens <= 60
    assert sdk.responses.retrieve(reply.id) == reply
    [item] = sdk.responses.input_items.list(reply.id).data
    assert item.type == "message"
    sdk.responses.delete(reply.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(reply.id)


def test_streamed_answer_is_the_whole_one(sdk: openai.OpenAI) -> None:
    whole = sdk.responses.create(model=MODEL, input=QUESTION, max_output_tokens=60)
    stream = sdk.responses.create(model=MODEL, input=QUESTION, max_output_tokens=60, stream=True)
    found = list(stream)
    said = "".join(event.delta for event in found if isinstance(event, ResponseTextDeltaEvent))
    assert said == whole.output_text
    assert found[-1].type == f"response.{whole.status}"
    with sdk.responses.stream(model=MODEL, input=QUESTION, store=False) as events:
        deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
        final = events.get_final_response()
    assert "".join(deltas) == final.output_text
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(final.id)


def test_objects_and_events_are_strictly_of_the_published_types(raw: httpx.Client) -> None:
    body = {"model": MODEL, "input": QUESTION, "max_output_tokens": 20}
    Response.model_validate_json(raw.post("/v1/responses", json=body).content, strict=True)
    stream = raw.post("/v1/responses", json=body | {"stream": True})
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    blocks = [block for block in stream.text.split("\n\n") if block.startswith("event: ")]
    numbers = [
        adapter.validate_json(block.partition("data: ")[2], strict=True).sequence_number
        for block in blocks
    ]
    assert numbers == list(range(len(blocks)))
    assert len(blocks) > 8


def test_conversation_goes_on_from_the_last_response(sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(model=MODEL, input=QUESTION, max_output_tokens=60)
    second = sdk.responses.create(
        model=MODEL,
        input="And where are its logs?",
        previous_response_id=first.id,
        max_output_tokens=60,
    )
    third = sdk.responses.create(
        model=MODEL, input="Thanks!", previous_response_id=second.id, max_output_tokens=60
    )
    assert first.usage
    assert second.usage
    assert third.usage
    assert first.usage.input_tokens < second.usage.input_tokens < third.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens
    assert "journalctl" in second.output_text  # edge-guide knows that much
    listed = list(sdk.responses.input_items.list(third.id, order="asc", limit=2))
    assert [getattr(item, "role", None) for item in listed] == [
        "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    by_hand = sdk.responses.create(
        model=MODEL,
        input=[
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "And where are its logs?"},
        ],
        max_output_tokens=60,
        store=False,
    )
    assert by_hand.output_text == second.output_text
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.responses.create(model=MODEL, input="?", previous_response_id=by_hand.id)
    assert caught.value.code == "previous_response_not_found"


def test_tool_is_called_and_its_output_goes_back(sdk: openai.OpenAI) -> None:
    reply = sdk.responses.create(
        model=MODEL,
        input="What will the weather be?",
        tools=[TOOL],
        tool_choice={"type": "function", "name": "forecast"},
        parallel_tool_calls=False,
        max_output_tokens=200,
    )
    [call] = [item for item in reply.output if isinstance(item, ResponseFunctionToolCall)]
    arguments = json.loads(call.arguments)
    assert arguments["city"] in {"Oslo", "Rome"}
    assert 1 <= arguments["days"] <= 9
    assert arguments.keys() == {"city", "days"}
    after = sdk.responses.create(
        model=MODEL,
        previous_response_id=reply.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        tools=[TOOL],
        tool_choice="none",
        max_output_tokens=20,
    )
    assert all(item.type != "function_call" for item in after.output)


def test_answer_is_parsed_as_a_model(sdk: openai.OpenAI) -> None:
    reply = sdk.responses.parse(
        model=MODEL, input="Where to?", text_format=Trip, max_output_tokens=200
    )
    assert isinstance(reply.output_parsed, Trip)


def test_background_response_is_polled_and_another_cancelled(sdk: openai.OpenAI) -> None:
    reply = sdk.responses.create(model=MODEL, input=QUESTION, background=True)
    assert reply.status == "queued"
    end = time.monotonic() + LIMIT_S
    while reply.status in {"queued", "in_progress"} and time.monotonic() < end:
        time.sleep(0.05)
        reply = sdk.responses.retrieve(reply.id)
    assert reply.status == "completed"
    assert "edged" in reply.output_text

    endless = sdk.responses.create(
        model=MODEL, input=QUESTION, background=True, extra_body={"ignore_eos": True}
    )
    cancelled = sdk.responses.cancel(endless.id)
    assert cancelled.status == "cancelled"
    assert sdk.responses.retrieve(endless.id).status == "cancelled"


def test_background_stream_is_taken_up_again(sdk: openai.OpenAI) -> None:
    stream = sdk.responses.create(
        model=MODEL, input=QUESTION, max_output_tokens=60, background=True, stream=True
    )
    created = next(iter(stream))
    stream.close()  # the client is gone, the response is not
    assert created.type == "response.created"
    rest = list(sdk.responses.retrieve(created.response.id, stream=True, starting_after=0))
    assert [event.sequence_number for event in rest] == list(range(1, len(rest) + 1))
    assert isinstance(rest[-1], ResponseCompletedEvent)
    assert rest[-1].response.output_text


def test_input_tokens_are_those_of_the_response(sdk: openai.OpenAI) -> None:
    asked: dict[str, Any]
    for asked in ({}, {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "none"}):
        asked |= {"model": MODEL, "input": QUESTION, "instructions": "Short."}
        counted = sdk.responses.input_tokens.count(**asked)
        reply = sdk.responses.create(**asked, max_output_tokens=1)
        assert reply.usage is not None
        assert counted.input_tokens == reply.usage.input_tokens


def test_prompt_beyond_the_context_is_a_bad_request(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=str(CONTEXT)) as caught:
        sdk.responses.create(model=MODEL, input="word " * 3 * CONTEXT)
    assert caught.value.code == "context_length_exceeded"


def test_client_that_leaves_frees_its_sequence(sdk: openai.OpenAI, raw: httpx.Client) -> None:
    stream = sdk.responses.create(
        model=MODEL, input=QUESTION, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    assert eventually(lambda: raw.get("/status").json()["models"][0]["open"] == 0)
