"""Anthropic's dialect: what its answers and errors look like, and what counting asks for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from anthropic.types import ErrorResponse, Message, MessageTokensCount

from edged import errors
from edged.api import events as api_events
from edged.config import Model, Server
from edged.protocol import (
    CallDelta,
    Delta,
    Event,
    Failed,
    Finish,
    Generate,
    Render,
    Rendered,
    Started,
    Usage,
)
from tests.api.conftest import PlayedBox, eventually, failing, plan_of, served
from tests.api.messages_forms import (
    COUNT,
    HI,
    PATH,
    THINKS_AND_CALLS,
    WEATHER,
    asked,
    body,
    playing,
    sse,
    strict,
    without_details,
)

# ── replies ──


async def test_whole_reply_is_strictly_the_published_type(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    box.scripts["guide"] = THINKS_AND_CALLS
    response = await http.post(PATH, json=body(model="gpt-4o-mini"))
    assert response.status_code == 200
    message = strict(Message, response.content)
    assert message.id.startswith("msg_")
    assert (message.model, message.role) == ("guide", "assistant")
    thinking, text, weather, time = message.content
    assert (thinking.thinking, bool(thinking.signature)) == ("hm well\n", True)
    assert text.text == "Let me see \u2028\x00"
    assert (weather.id, weather.name, weather.input) == ("c1", "weather", {"city": "Oslo"})
    assert (time.id, time.input) == ("c2", {})
    assert (message.stop_reason, message.stop_sequence) == ("tool_use", None)
    assert message.usage.input_tokens == 4
    assert message.usage.cache_read_input_tokens == 3
    assert message.usage.cache_creation_input_tokens == 0
    assert message.usage.output_tokens == 5
    assert message.usage.output_tokens_details.thinking_tokens == 2
    assert response.headers["request-id"] == response.headers["x-request-id"]


async def test_stream_opens_one_block_at_a_time(box: PlayedBox, http: httpx.AsyncClient) -> None:
    box.scripts["guide"] = THINKS_AND_CALLS
    response = await http.post(PATH, json=body(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [(name, value) for name, value in sse(response.text) if name != "ping"]
    start = events[0][1]["message"]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert (start["usage"]["input_tokens"], start["usage"]["output_tokens"]) == (7, 0)
    shapes = [
        (
            name,
            value.get("index"),
            value.get("content_block", {}).get("type") or value.get("delta", {}).get("type"),
        )
        for name, value in events
    ]
    block = "content_block"
    assert shapes == [
        ("message_start", None, None),
        (f"{block}_start", 0, "thinking"),
        (f"{block}_delta", 0, "thinking_delta"),
        (f"{block}_delta", 0, "thinking_delta"),
        (f"{block}_delta", 0, "signature_delta"),
        (f"{block}_stop", 0, None),
        (f"{block}_start", 1, "text"),
        (f"{block}_delta", 1, "text_delta"),
        (f"{block}_delta", 1, "text_delta"),
        (f"{block}_stop", 1, None),
        (f"{block}_start", 2, "tool_use"),
        (f"{block}_delta", 2, "input_json_delta"),
        (f"{block}_delta", 2, "input_json_delta"),
        (f"{block}_stop", 2, None),
        (f"{block}_start", 3, "tool_use"),
        (f"{block}_delta", 3, "input_json_delta"),
        (f"{block}_stop", 3, None),
        ("message_delta", None, None),
        ("message_stop", None, None),
    ]
    end = events[-2][1]
    assert end["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert (end["usage"]["input_tokens"], end["usage"]["cache_read_input_tokens"]) == (4, 3)
    deltas = [value["delta"] for name, value in events if name == f"{block}_delta"]
    assert "".join(d.get("text", "") for d in deltas) == "Let me see \u2028\x00"
    assert "".join(d.get("partial_json", "") for d in deltas) == '{"city": "Oslo"}{}'
    assert ("ping", {"type": "ping"}) in sse(response.text)


async def test_answer_without_a_word_has_no_blocks(box: PlayedBox, http: httpx.AsyncClient) -> None:
    box.scripts["guide"] = playing()
    reply = strict(Message, (await http.post(PATH, json=body())).content)
    assert (reply.content, reply.stop_reason) == ([], "end_turn")
    names = [name for name, _ in sse((await http.post(PATH, json=body(stream=True))).text)]
    assert names == ["message_start", "ping", "message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("finish", "reason", "sequence"),
    [
        (Finish(0, "stop"), "end_turn", None),
        (Finish(0, "stop", stop="\n\nHuman:"), "stop_sequence", "\n\nHuman:"),
        (Finish(0, "tool_calls"), "tool_use", None),
        (Finish(0, "length", Usage(7, 100)), "max_tokens", None),
        (Finish(0, "length", Usage(7, 99)), "model_context_window_exceeded", None),
    ],
)
async def test_reason_of_the_end(
    box: PlayedBox, http: httpx.AsyncClient, finish: Finish, reason: str, sequence: str | None
) -> None:
    box.scripts["guide"] = playing(Delta(0, content="a"), finish=finish)
    reply = strict(Message, (await http.post(PATH, json=body())).content)
    assert (reply.stop_reason, reply.stop_sequence) == (reason, sequence)
    events = dict(sse((await http.post(PATH, json=body(stream=True))).text))
    assert events["message_delta"]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


async def test_call_that_was_cut_off_has_empty_input(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    cut = Delta(0, calls=[CallDelta(0, "c1", "weather", '{"city": "Os')])
    box.scripts["guide"] = playing(cut, finish=Finish(0, "length", Usage(7, 100)))
    reply = strict(Message, (await http.post(PATH, json=body())).content)
    assert (reply.content[0].input, reply.stop_reason) == ({}, "max_tokens")


async def test_thinking_can_be_left_out(box: PlayedBox, http: httpx.AsyncClient) -> None:
    box.scripts["guide"] = THINKS_AND_CALLS
    more = {"thinking": {"type": "adaptive", "display": "omitted"}}
    reply = strict(Message, (await http.post(PATH, json=body(**more))).content)
    assert (reply.content[0].type, reply.content[0].thinking) == ("thinking", "")
    text = (await http.post(PATH, json=body(**more, stream=True))).text
    assert "thinking_delta" not in text
    assert "signature_delta" in text


# ── errors ──


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidRequest("no", param="a"), 400, "invalid_request_error"),
        (errors.ModelNotFound("no"), 404, "not_found_error"),
        (errors.QueueFull("no"), 429, "rate_limit_error"),
        (errors.ModelLoading("no"), 503, "overloaded_error"),
        (errors.InternalError("no"), 500, "api_error"),
    ],
)
async def test_error_has_its_status_and_anthropics_shape(
    box: PlayedBox, http: httpx.AsyncClient, error: errors.EdgedError, status: int, kind: str
) -> None:
    box.scripts["guide"] = failing(error)
    for stream in (False, True):
        response = await http.post(PATH, json=body(stream=stream))
        assert response.status_code == status
        assert strict(ErrorResponse, json.dumps(without_details(response))).error.type == kind
        value = response.json()
        assert value["request_id"] == response.headers["request-id"]
        assert value["error"]["details"] == {"error_code": error.code, "param": error.param}


@pytest.mark.parametrize("figure", ["20", "at least 20"])
async def test_long_prompt_is_said_in_anthropics_words(
    box: PlayedBox, http: httpx.AsyncClient, figure: str
) -> None:
    said = f"the prompt has {figure} tokens, the context is 10 tokens, both together"
    box.scripts["guide"] = failing(errors.ContextLengthExceeded(said))
    message = (await http.post(PATH, json=body())).json()["error"]["message"]
    assert message == f"prompt is too long: 20 tokens > 10 maximum; {said}"


async def test_error_in_the_middle_is_the_last_event(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, 7)
        yield Delta(request.id, content="a")
        await asyncio.sleep(0.05)
        yield Failed(request.id, "worker_crashed", "it died")

    box.scripts["guide"] = script
    response = await http.post(PATH, json=body(stream=True))
    assert response.status_code == 200
    name, value = sse(response.text)[-1]
    assert name == "error"
    assert value["error"]["message"] == "it died"
    assert value["error"]["details"]["error_code"] == "worker_crashed"
    assert value["request_id"] == response.headers["request-id"]


async def test_errors_before_and_beside_the_route_have_the_shape(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    box.plan = plan_of(
        *(plan.model for plan in box.plan.models.values()), server=Server(max_body_bytes=2000)
    )
    text = {"content-type": "text/plain"}
    found = [
        await http.post(PATH, content=b"{"),
        await http.post(PATH, content=b""),
        await http.post(PATH, content=b"a", headers=text),
        await http.post(PATH, content=b" " * 3000),
        await http.post(PATH, json=body(model="nobody")),
        await http.post(COUNT, json=body(model="nobody")),
        await http.get(PATH),
        await http.delete(f"{COUNT}/"),
        await http.post(f"{PATH}/batches", json={}),
    ]
    assert [r.status_code for r in found] == [400, 400, 415, 413, 404, 404, 405, 405, 404]
    for response in found:
        value = response.json()
        assert value.keys() == {"type", "error", "request_id"}
        assert value["error"].keys() == {"type", "message", "details"}
        assert value["request_id"] == response.headers["request-id"]
    assert found[3].json()["error"]["type"] == "request_too_large"
    assert found[6].headers["allow"]
    box.plan = plan_of(server=Server(allow=("10.0.0.0/8",)))
    response = await http.post(PATH, json=body())
    assert (response.status_code, response.json()["error"]["type"]) == (403, "permission_error")
    assert "param" in (await http.get("/v1/messagesx")).json()["error"], "another path is OpenAI's"


async def test_upstream_that_fails_is_an_error_in_the_shape(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    async def breaks_off(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"event: a\n\n", "more_body": True})

    async with served(breaks_off) as port:
        box.plan = plan_of(
            Model("breaks", upstream=f"http://127.0.0.1:{port}/v1"),
            Model("absent", upstream="http://127.0.0.1:9/v1"),
        )
        response = await http.post(PATH, json=body(model="breaks", stream=True))
        assert response.text.startswith("event: a\n\nevent: error\n")
        data = json.loads(response.text.rpartition("data: ")[2])
        assert data["error"]["details"]["error_code"] == "unavailable"
        assert data["request_id"] == response.headers["request-id"]
        response = await http.post(PATH, json=body(model="absent"))
        assert (response.status_code, response.json()["type"]) == (503, "error")


async def test_client_that_leaves_ends_the_generation(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    async def endless(request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, 7)
        while True:
            await asyncio.sleep(0.001)
            yield Delta(request.id, content="a")

    box.scripts["guide"] = endless
    async with http.stream("POST", PATH, json=body(stream=True)) as response:
        await anext(response.aiter_bytes())
        assert box.open == 1
    await eventually(lambda: box.open == 0)


async def test_waiting_stream_is_kept_alive_and_then_answered(
    box: PlayedBox, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_events, "PING_S", 0.02)

    async def slow(request: Generate) -> AsyncGenerator[Event, None]:
        await asyncio.sleep(0.2)
        yield Started(request.id, 7)
        yield Delta(request.id, content="a")
        yield Finish(request.id, "stop")

    box.scripts["guide"] = slow
    text = (await http.post(PATH, json=body(stream=True))).text
    assert "ping" in text.partition("event: message_start")[0]
    assert next(name for name, _ in sse(text) if name != "ping") == "message_start"


# ── counting ──


async def test_count_asks_for_what_the_request_would_render(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    async def counts(request: Any) -> AsyncGenerator[Event, None]:
        yield Rendered(request.id, "…", 42)

    more = {
        "system": "S",
        "tools": [WEATHER],
        "tool_choice": {"type": "any"},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "messages": [*HI, {"role": "assistant", "content": "Well"}],
    }
    assert (await http.post(PATH, json=body(**more, max_tokens=4000))).status_code == 200
    prompt = asked(box).prompt
    box.scripts["guide"] = counts
    without = {k: v for k, v in body(**more).items() if k != "max_tokens"}
    response = await http.post(f"{COUNT}?beta=true", json=without)
    assert strict(MessageTokensCount, response.content).input_tokens == 42
    assert asked(box) == Render(prompt)


async def test_count_refuses_what_messages_refuses(box: PlayedBox, http: httpx.AsyncClient) -> None:
    for more in ({"mcp_servers": [{}]}, {"tools": [{"type": "bash_20250124", "name": "bash"}]}):
        response = await http.post(COUNT, json=body(**more))
        assert (response.status_code, response.json()["type"]) == (400, "error")
    assert not box.asked
