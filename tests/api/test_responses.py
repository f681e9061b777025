"""The Responses API's answers, whole and streamed.

Every object and event is held against the newest openai SDK's types, strictly, to the last field.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from edged import errors
from edged.api.app import create_app
from edged.api.openai.responses import items, request
from edged.api.openai.responses.background import Background
from edged.api.openai.responses.reply import ResponseReply
from edged.config import Model
from edged.plan import ModelPlan
from edged.protocol import (
    Delta,
    Event,
    Finish,
    Generate,
    Messages,
    Started,
    Usage,
)
from tests.api.conftest import PlayedBox, failing, plan_of
from tests.api.responses_support import (
    PATH,
    TEXT,
    WEATHER,
    ask,
    asks,
    calling,
    crashing,
    cut,
    events,
    likely,
    prompt,
    silent,
    strictly,
    told,
    types,
)


async def test_whole_response_says_what_was_asked_and_answered(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    reply = await ask(
        http,
        instructions="Be brief.",
        max_output_tokens=50,
        temperature=0.5,
        metadata={"a": "b"},
        user="me",
        safety_identifier="s",
        prompt_cache_key="k",
        reasoning={"effort": "low", "summary": "auto"},
        max_tool_calls=3,
        service_tier="auto",
        truncation="disabled",
    )
    assert reply["id"].startswith("resp_")
    assert reply["status"] == "completed"
    assert reply["completed_at"] >= reply["created_at"] > 1_700_000_000
    thought, said = reply["output"]
    assert thought == {
        "type": "reasoning",
        "id": thought["id"],
        "status": "completed",
        "content": [{"type": "reasoning_text", "text": "hm"}],
        "summary": [],
    }
    assert said == {
        "type": "message",
        "id": said["id"],
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}],
    }
    assert reply["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 11,
    }
    echoed = {
        "model": "guide",
        "instructions": "Be brief.",
        "max_output_tokens": 50,
        "max_tool_calls": 3,
        "temperature": 0.5,
        "top_p": 1.0,
        "metadata": {"a": "b"},
        "user": "me",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": None},
        "service_tier": "default",
        "truncation": "disabled",
        "tool_choice": "auto",
        "tools": [],
        "parallel_tool_calls": True,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "previous_response_id": None,
        "store": True,
        "background": False,
        "error": None,
        "incomplete_details": None,
    }
    assert {name: reply[name] for name in echoed} == echoed
    asked = box.asked[-1][1]
    assert asked.max_tokens == 50
    assert asked.reasoning_budget == 1024
    assert prompt(box) == Messages(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
        ],
        template_kwargs={"reasoning_effort": "low", "enable_thinking": True},
    )


async def test_response_without_said_sampling_echoes_the_models_own(
    http: httpx.AsyncClient,
) -> None:
    assert (await ask(http))["temperature"] == 0.25  # of models.toml
    assert (await ask(http, model="Qwen/Qwen3-8B"))["temperature"] == 1.0


async def test_stream_tells_all_in_order(http: httpx.AsyncClient, box: PlayedBox) -> None:
    box.scripts["guide"] = calling
    found = await events(http, tools=[WEATHER])
    assert types(found) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert found[0]["response"]["status"] == "in_progress"
    assert found[0]["response"]["output"] == []
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    last = found[-1]["response"]
    assert last["output"] == done
    assert [item["type"] for item in done] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert [item.get("arguments") for item in done[2:]] == ['{"city":"Oslo"}', "{}"]
    assert [item.get("call_id") for item in done[2:]] == ["call_a", "call_b"]
    assert last["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    added = [event for event in found if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == [0, 1, 2, 3]
    assert [event["item"]["id"] for event in added] == [item["id"] for item in done]
    for event in found:
        if "item_id" in event:
            assert event["item_id"] == done[event["output_index"]]["id"]


async def test_whole_response_is_what_its_stream_ends_with(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    for script in (box.scripts["guide"], calling, cut, silent, likely):
        box.scripts["guide"] = script
        more = {"include": ["message.output_text.logprobs"], "tools": [WEATHER]}
        whole = await ask(http, **more)
        streamed = (await events(http, **more))[-1]["response"]
        assert anonymous(whole) == anonymous(streamed)


def anonymous(reply: dict[str, Any]) -> dict[str, Any]:
    """Return the response without what differs each time."""
    output = [{**item, "id": ""} for item in reply["output"]]
    return reply | {"id": "", "output": output, "created_at": 0, "completed_at": 0}


async def test_answer_that_is_cut_off_is_incomplete(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    box.scripts["guide"] = cut
    reply = await ask(http, max_output_tokens=2)
    assert reply["status"] == "incomplete"
    assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply["completed_at"] is None
    assert reply["output"][0]["status"] == "incomplete"
    assert (await events(http))[-1]["type"] == "response.incomplete"


async def test_answer_that_says_nothing_is_an_empty_message(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    box.scripts["guide"] = silent
    [item] = (await ask(http))["output"]
    assert item["content"][0]["text"] == ""
    assert "output_text.done" in types(await events(http))


async def test_logprobs_belong_to_the_text_that_they_make(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    box.scripts["guide"] = likely
    more = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    reply = await ask(http, **more)
    assert box.asked[-1][1].logprobs == 2
    logprobs = reply["output"][0]["content"][0]["logprobs"]
    assert [each["bytes"] for each in logprobs] == [[0xC3], [0xA9], [0x21]]
    assert logprobs[0]["top_logprobs"][1] == {"token": "e", "bytes": [0x65], "logprob": -1.0}
    found = await events(http, **more)
    deltas = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [len(event["logprobs"]) for event in deltas] == [2, 1]
    await ask(http)
    assert box.asked[-1][1].logprobs is None


async def test_failure_in_the_middle_ends_the_stream_as_failed(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    box.scripts["guide"] = crashing
    found = await events(http)
    assert types(found)[-3:] == ["content_part.done", "output_item.done", "failed"]
    last = found[-1]["response"]
    assert last["status"] == "failed"
    assert last["error"]["code"] == "server_error"
    assert "died" in last["error"]["message"]
    assert last["output"][0]["status"] == "incomplete"
    kept = strictly(Response, (await http.get(f"{PATH}/{last['id']}")).text)
    assert kept == last


@pytest.mark.parametrize("stream", [False, True])
async def test_failure_before_the_answer_has_its_status_and_our_names(
    http: httpx.AsyncClient, box: PlayedBox, stream: bool
) -> None:
    box.scripts["guide"] = failing(
        errors.ContextLengthExceeded("5000 tokens, 4096 fit", param="messages")
    )
    response = await http.post(PATH, json=asks(stream=stream))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.json()["error"]["param"] == "input"
    box.scripts["guide"] = failing(errors.QueueFull("64 wait"))
    assert (await http.post(PATH, json=asks(stream=stream))).status_code == 429


async def test_failure_behind_a_ping_is_an_error_event(
    http: httpx.AsyncClient, box: PlayedBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.api.events.PING_S", 0.02)

    async def late(request: Generate) -> AsyncGenerator[Event, None]:
        await asyncio.sleep(0.2)
        raise errors.ModelFailed("the file is broken")
        yield Started(request.id, 0)

    box.scripts["guide"] = late
    response = await http.post(PATH, json=asks(stream=True))
    assert response.text.startswith(": ping")
    [event] = told(response.text)
    assert event["type"] == "error"
    assert event["code"] == "model_failed"


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
pieces = st.lists(st.builds(Delta, st.just(1), content=text, reasoning=text), max_size=8)


@given(deltas=pieces)
def test_stream_carries_every_character(deltas: list[Delta]) -> None:
    reply = _reply(plan_of(Model("guide")).models["guide"])
    parts = [reply.opening(3), *(reply.piece(0, delta) for delta in deltas)]
    finish = Finish(1, "stop", Usage(3, 4))
    parts += [reply.closing(0, finish), reply.ending([finish])]
    found = told(b"".join(parts).decode())
    for kind, attribute in (("output_text", "content"), ("reasoning_text", "reasoning")):
        wanted = "".join(getattr(delta, attribute) for delta in deltas)
        for end, field in (("delta", "delta"), ("done", "text")):
            name = f"response.{kind}.{end}"
            assert "".join(e[field] for e in found if e["type"] == name) == wanted


def _reply(plan: ModelPlan) -> ResponseReply:
    wire, _ = request.read({"model": "guide", "input": "hi"})
    return ResponseReply(request.to_response(wire, plan, store=False))


def test_ids_are_long_enough_to_be_secrets() -> None:
    found = {items.new_id("resp") for _ in range(100)}
    assert len(found) == 100
    assert {len(each) for each in found} == {len("resp_") + 48}


def test_background_of_an_app_without_any_is_empty(box: PlayedBox) -> None:
    assert Background.of(create_app(box)).find("resp_1", "") is None
