from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import msgspec
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from edged import errors
from edged.api import events
from edged.protocol import (
    CallDelta,
    Chosen,
    Delta,
    Event,
    Failed,
    Finish,
    Generate,
    Grammar,
    JsonSchema,
    Likelihood,
    Messages,
    Regex,
    Started,
    ToolChoice,
    Usage,
)
from tests.api.conftest import PlayedBox, eventually, failing

S = {"type": "integer"}
CHAT = "/v1/chat/completions"
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}},
}
TEXT = "Hello, wörld\n\n\u2028\x00"


def asks(**more: Any) -> dict[str, Any]:
    return {"model": "guide", "messages": [{"role": "user", "content": "hi"}]} | more


def chunks(body: str) -> list[dict[str, Any]]:
    """Return the JSON of every event of a stream, after checking that each is one line."""
    found = []
    for event in body.split("\n\n"):
        if event and not event.startswith(":"):
            assert event.startswith("data: ")
            found.append(event.removeprefix("data: "))
    assert found.pop() == "[DONE]"
    return [msgspec.json.decode(each) for each in found]


async def test_whole_reply_has_every_field(http: httpx.AsyncClient, box: PlayedBox) -> None:
    response = await http.post(CHAT, json=asks())
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    reply = response.json()
    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    assert reply["model"] == "guide"
    assert reply["system_fingerprint"].startswith("edged-")
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": TEXT,
                "reasoning_content": "hm",
                "refusal": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert reply["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 4,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    assert reply["timings"]["prompt_n"] == 4
    assert reply["timings"]["predicted_per_second"] == 100.0
    assert box.open == 0


async def test_stream_carries_role_pieces_reason_and_end(http: httpx.AsyncClient) -> None:
    response = await http.post(CHAT, json=asks(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    found = chunks(response.text)
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    deltas = [chunk["choices"][0]["delta"] for chunk in found]
    assert "".join(delta.get("content", "") for delta in deltas) == TEXT
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [None] * 5 + ["stop"]
    assert len({chunk["id"] for chunk in found}) == 1
    assert all("usage" not in chunk for chunk in found)
    assert found[-1]["timings"]["cache_n"] == 3


async def test_stream_with_usage_ends_with_a_chunk_without_choices(
    http: httpx.AsyncClient,
) -> None:
    response = await http.post(CHAT, json=asks(stream=True, stream_options={"include_usage": True}))
    *others, last = chunks(response.text)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 11
    assert all(chunk["usage"] is None for chunk in others)


async def test_request_reaches_the_model_in_its_own_words(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    body = asks(
        model="gpt-4o-mini",
        messages=[
            {"role": "developer", "content": [
                {"type": "text", "text": "be"}, {"type": "text", "text": "kind"}
            ]},
            {"role": "user", "content": "hi", "name": "ann", "unknown": 1},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
            {"role": "assistant", "content": "so", "reasoning_content": "hm", "refusal": None},
        ],
        top_p=0.5, top_k=-1, seed=-5, stop="x", max_completion_tokens=9,
        logit_bias={"17": -100}, repetition_penalty=1.1,
        chat_template_kwargs={"enable_thinking": False}, user="me",
        metadata={"a": "b"}, store=False, service_tier="auto", temperature=None,
    )  # fmt: skip
    response = await http.post(CHAT, json=body)
    assert response.status_code == 200
    assert response.json()["model"] == "guide"
    [(name, request)] = box.asked
    assert name == "guide"
    assert isinstance(request.prompt, Messages)
    assert request.prompt.messages == [
        {"role": "system", "content": "be\nkind"},
        {"role": "user", "content": "hi", "name": "ann"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
            ],
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "assistant", "content": "so", "reasoning_content": "hm"},
    ]
    assert request.prompt.template_kwargs == {"enable_thinking": False}
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (None, 0.5, 0)
    assert (sampling.seed, sampling.logit_bias, sampling.repeat_penalty) == (-5, {17: -100}, 1.1)
    assert (request.stop, request.max_tokens) == (["x"], 9)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"n": 0}, "n"),
        ({"n": 200}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", 3]}, "stop[1]"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": 7}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]},
         "messages[0].content[0].text"),
        ({"model": 3}, "model"),
        ({"user": 3}, "user"),
        ({"metadata": []}, "metadata"),
        ({"repeat_penalty": 1.1, "repetition_penalty": 1.2}, "repetition_penalty"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{"function": {"name": "f", "parameters": {"type": "array"}}}]},
         "tools[0].function.parameters"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
         "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "g"}}},
         "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tools": [TOOL], "tool_choice":
          {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
         "tool_choice.allowed_tools.tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}},
         "response_format.json_schema.name"),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= x"}, "grammar"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_json": "{"}, "guided_json"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"thinking_budget_tokens": -2}, "thinking_budget_tokens"),
        ({"continue_final_message": True}, "messages"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
        ({"dry_multiplier": -1}, "dry_multiplier"),
    ],
)  # fmt: skip
async def test_bad_value_is_a_400_that_names_its_parameter(
    http: httpx.AsyncClient, box: PlayedBox, more: dict[str, Any], param: str
) -> None:
    response = await http.post(CHAT, json=asks(**more))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert error["type"] == "invalid_request_error"
    assert error["code"] in {"invalid_value", "unsupported_parameter"}
    assert box.asked == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("prompt", "x"),
        ("echo", True),
        ("reasoning_format", "none"),
        ("verbosity", "high"),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content"}),
        ("web_search_options", {}),
    ],
)
async def test_parameter_that_is_not_honoured_is_refused_by_name(
    http: httpx.AsyncClient, box: PlayedBox, name: str, value: Any
) -> None:
    response = await http.post(CHAT, json=asks(**{name: value}))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, name)
    assert error["code"] == "unsupported_parameter"
    assert box.asked == []


async def test_neutral_values_of_refused_parameters_pass(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    neutral = {
        "tools": [], "tool_choice": "none", "functions": None, "logprobs": False, "n": 1,
        "response_format": {"type": "text"}, "modalities": ["text"], "reasoning_effort": None,
        "parallel_tool_calls": True, "top_logprobs": 0, "dry_multiplier": 0.0, "dry_base": 1.75,
        "stop": None, "stream_options": None, "logit_bias": {}, "verbosity": "medium",
    }  # fmt: skip
    response = await http.post(CHAT, json=asks(**neutral))
    assert response.status_code == 200, response.text
    assert len(box.asked) == 1


async def test_unknown_model_is_404(http: httpx.AsyncClient) -> None:
    response = await http.post(CHAT, json=asks(model="nobody"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        errors.QueueFull("64 wait", retry_after_s=7),
        errors.ModelFailed("no such file"),
        errors.ContextLengthExceeded("9 and 8", param="messages"),
    ],
)
async def test_error_before_the_first_event_has_its_status(
    http: httpx.AsyncClient, box: PlayedBox, error: errors.EdgedError, stream: bool
) -> None:
    box.scripts["guide"] = failing(error)
    response = await http.post(CHAT, json=asks(stream=stream))
    assert response.status_code == error.status
    assert response.json() == {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }
    assert response.headers.get("retry-after") == {429: "7", 503: "5"}.get(error.status)


async def test_failed_event_before_started_has_its_status(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        yield Failed(request.id, "context_length_exceeded", "12 of 8", "messages")

    box.scripts["guide"] = script
    response = await http.post(CHAT, json=asks(stream=True))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


async def test_failure_in_a_stream_is_its_last_event(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    go_on = asyncio.Event()

    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, 3)
        yield Delta(request.id, content="a")
        await go_on.wait()
        yield Failed(request.id, "worker_crashed", "the worker died")

    box.scripts["guide"] = script
    async with http.stream("POST", CHAT, json=asks(stream=True)) as response:
        text = ""
        async for piece in response.aiter_text():
            text += piece
            go_on.set()
    assert response.status_code == 200
    last = text.strip().split("\n\n")[-1]
    assert msgspec.json.decode(last.removeprefix("data: "))["error"]["code"] == "worker_crashed"
    assert "[DONE]" not in text


async def test_fault_of_our_own_shows_no_internals(http: httpx.AsyncClient, box: PlayedBox) -> None:
    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        yield Delta(request.id, content="x")
        raise RuntimeError("secret")

    box.scripts["guide"] = script
    response = await http.post(CHAT, json=asks())
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text


async def test_answer_without_an_end_is_an_error(http: httpx.AsyncClient, box: PlayedBox) -> None:
    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, 1)

    box.scripts["guide"] = script
    response = await http.post(CHAT, json=asks())
    assert response.status_code == 500


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_closes_the_generation(
    http: httpx.AsyncClient, box: PlayedBox, stream: bool
) -> None:
    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, 3)
        yield Delta(request.id, content="a")
        await asyncio.Event().wait()

    box.scripts["guide"] = script
    task = asyncio.create_task(http.post(CHAT, json=asks(stream=stream)))
    await eventually(lambda: box.open == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(60):
        await box.closed.wait()
    assert box.open == 0
    await eventually(lambda: b'status="499"' in box.metrics.render(box.status()) or stream)


async def test_client_that_takes_no_bytes_is_cut_off(
    port: int, box: PlayedBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "STALLED_CLIENT_S", 0.2)
    monkeypatch.setattr(events, "PING_S", 0.1)  # the next write after all fits no more

    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, 3)
        for _ in range(200):
            yield Delta(request.id, content="x" * 100_000)
        await asyncio.Event().wait()

    box.scripts["guide"] = script
    content = msgspec.json.encode(asks(stream=True))
    with socket.create_connection(("127.0.0.1", port)) as connection, capture_logs() as logs:
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % (CHAT.encode(), len(content)) + content)
        await eventually(box.closed.is_set)
        await eventually(lambda: any(line["event"] == "request.done" for line in logs))
    [line] = [line for line in logs if line["event"] == "request.done"]
    assert line["finish"] == "client_too_slow"
    assert box.open == 0


async def test_silent_stream_opens_and_pings(
    http: httpx.AsyncClient, box: PlayedBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PING_S", 0.05)
    go_on = asyncio.Event()

    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        await go_on.wait()
        yield Started(request.id, 1)
        yield Delta(request.id, content="late")
        yield Finish(request.id, "stop")

    box.scripts["guide"] = script
    async with http.stream("POST", CHAT, json=asks(stream=True)) as response:
        assert response.status_code == 200
        text = ""
        async for piece in response.aiter_text():
            text += piece
            if text.count(": ping\n\n") >= 2:
                go_on.set()
    assert text.startswith(": ping\n\n: ping\n\n")
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(text)]
    assert [delta.get("content") for delta in deltas] == ["", "late", None]


async def test_flood_leaves_in_few_sends_and_complete(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, 1)
        for i in range(20_000):
            yield Delta(request.id, content=f"{i} ")
        yield Finish(request.id, "length")

    box.scripts["guide"] = script
    response = await http.post(CHAT, json=asks(stream=True))
    content = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks(response.text))
    assert content == "".join(f"{i} " for i in range(20_000))


async def test_many_streams_at_once_do_not_mix(http: httpx.AsyncClient, box: PlayedBox) -> None:
    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        assert isinstance(request.prompt, Messages)
        name = request.prompt.messages[0]["content"]
        yield Started(request.id, 1)
        for _ in range(20):
            await asyncio.sleep(0)
            yield Delta(request.id, content=name)
        yield Finish(request.id, "stop")

    box.scripts["guide"] = script

    async def one(name: str) -> str:
        body = asks(stream=True, messages=[{"role": "user", "content": name}])
        response = await http.post(CHAT, json=body)
        return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks(response.text))

    names = [chr(ord("a") + i) for i in range(20)]
    assert await asyncio.gather(*map(one, names)) == [name * 20 for name in names]


# ── tools, structured output, several answers ──


async def test_tools_and_choice_reach_the_engine(http: httpx.AsyncClient, box: PlayedBox) -> None:
    tools = [TOOL, {"type": "function", "function": {"name": "g", "description": "G"}}]
    choices: list[tuple[Any, ToolChoice]] = [
        (None, ToolChoice()),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "function": {"name": "g"}}, ToolChoice("required", ["g"])),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "f"}}],
                },
            },
            ToolChoice("auto", ["f"]),
        ),
    ]
    for wire, wanted in choices:
        response = await http.post(CHAT, json=asks(tools=tools, tool_choice=wire))
        assert response.status_code == 200, response.text
        request = box.asked[-1][1]
        assert request.tool_choice == wanted
        assert isinstance(request.prompt, Messages)
        empty = {"type": "object", "properties": {}}
        assert request.prompt.tools == [
            TOOL,
            {
                "type": "function",
                "function": {"name": "g", "description": "G", "parameters": empty},
            },
        ]
    await http.post(CHAT, json=asks(tools=tools, parallel_tool_calls=False))
    assert box.asked[-1][1].tool_choice == ToolChoice(parallel=False)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, JsonSchema({"type": "object"})),
        (  # agents send both; a call has no content to hold
            {
                "tools": [TOOL],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            None,
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": S}}},
            JsonSchema(S),
        ),
        ({"json_schema": S}, JsonSchema(S)),
        ({"grammar": 'root ::= "x"'}, Grammar('root ::= "x"')),
        ({"guided_json": S}, JsonSchema(S)),
        ({"guided_json": '{"type": "integer"}'}, JsonSchema(S)),
        ({"guided_regex": "[ab]+"}, Regex("[ab]+")),
        ({"guided_choice": ["a.b", "c"]}, Regex(r"a\.b|c")),
        ({"structured_outputs": {"json": S}}, JsonSchema(S)),
        ({"structured_outputs": {"json_object": True}}, JsonSchema({"type": "object"})),
    ],
)
async def test_every_spelling_of_a_format_is_one_constraint(
    http: httpx.AsyncClient, box: PlayedBox, more: dict[str, Any], wanted: Any
) -> None:
    response = await http.post(CHAT, json=asks(**more))
    assert response.status_code == 200, response.text
    assert box.asked[0][1].constraint == wanted


@pytest.mark.parametrize(
    ("more", "budget", "kwargs"),
    [
        ({}, None, {}),
        ({"reasoning_effort": "none"}, 0, {"reasoning_effort": "none", "enable_thinking": False}),
        ({"reasoning_effort": "low"}, 1024, {"reasoning_effort": "low", "enable_thinking": True}),
        ({"reasoning_effort": "high"}, None, {"reasoning_effort": "high", "enable_thinking": True}),
        ({"thinking_budget_tokens": 7}, 7, {}),
        ({"thinking_budget_tokens": 0}, 0, {"enable_thinking": False}),
        ({"thinking_budget_tokens": -1}, None, {}),
    ],
)
async def test_reasoning_is_bounded(
    http: httpx.AsyncClient,
    box: PlayedBox,
    more: dict[str, Any],
    budget: int | None,
    kwargs: dict[str, Any],
) -> None:
    await http.post(CHAT, json=asks(**more))
    request = box.asked[0][1]
    assert request.reasoning_budget == budget
    assert isinstance(request.prompt, Messages)
    assert request.prompt.template_kwargs == kwargs


async def calling(request: Generate) -> AsyncGenerator[Event, None]:
    yield Started(request.id, 5)
    yield Delta(request.id, reasoning="so")
    yield Delta(request.id, calls=[CallDelta(0, "c0", "f"), CallDelta(0, arguments='{"a"')])
    yield Delta(request.id, calls=[CallDelta(0, arguments=": 1}"), CallDelta(1, "c1", "g", "{}")])
    yield Finish(request.id, "tool_calls", Usage(5, 4))


async def test_calls_whole(http: httpx.AsyncClient, box: PlayedBox) -> None:
    box.scripts["guide"] = calling
    reply = (await http.post(CHAT, json=asks(tools=[TOOL]))).json()
    [choice] = reply["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "content": None,
        "reasoning_content": "so",
        "tool_calls": [
            {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
            {"id": "c1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
        "role": "assistant",
        "refusal": None,
    }


async def test_calls_streamed_one_a_chunk(http: httpx.AsyncClient, box: PlayedBox) -> None:
    box.scripts["guide"] = calling
    response = await http.post(CHAT, json=asks(tools=[TOOL], stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(response.text)]
    pieces = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    # instructor, for one, reads the first entry of a chunk only.
    assert {len(calls) for calls in pieces} == {1}
    assert pieces[0][0] == {
        "index": 0,
        "id": "c0",
        "type": "function",
        "function": {"name": "f", "arguments": '{"a"'},
    }
    assert [(call["index"], call["function"]["arguments"]) for [call] in pieces] == [
        (0, '{"a"'),
        (0, ": 1}"),
        (1, "{}"),
    ]
    assert chunks(response.text)[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def numbered(request: Generate) -> AsyncGenerator[Event, None]:
    """Answer with the seed, a token at a time."""
    yield Started(request.id, 5)
    for piece in str(request.sampling.seed):
        await asyncio.sleep(0)
        chosen = Chosen(7, piece.encode(), -0.5, [Likelihood(8, b"\xff", -1.5)])
        yield Delta(request.id, content=piece, logprobs=[chosen])
    usage = Usage(5, len(str(request.sampling.seed)), cached_tokens=2)
    yield Finish(request.id, "stop", usage)


async def test_n_answers_have_seeds_of_their_own_and_one_prompt(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    box.scripts["guide"] = numbered
    reply = (await http.post(CHAT, json=asks(n=3, seed=10))).json()
    answers = [(choice["index"], choice["message"]["content"]) for choice in reply["choices"]]
    assert answers == [(0, "10"), (1, "11"), (2, "12")]
    usage = reply["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 6)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 2


async def test_n_answers_differ_with_the_seed_of_the_model(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    name, plan = "guide", box.plan.models["guide"]
    model = replace(plan.model, sampling=replace(plan.model.sampling, seed=3))
    box.plan.models[name] = replace(plan, model=model)
    await http.post(CHAT, json=asks(n=3))
    # None: the supervisor's turn to say it.
    assert [request.sampling.seed for _, request in box.asked] == [None, 4, 5]


async def test_n_answers_stream_side_by_side(http: httpx.AsyncClient, box: PlayedBox) -> None:
    box.scripts["guide"] = numbered
    body = asks(n=3, seed=2**63 - 2, stream=True, stream_options={"include_usage": True})
    found = chunks((await http.post(CHAT, json=body)).text)
    texts, reasons = ["", "", ""], []
    for chunk in found:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
            if choice["finish_reason"]:
                reasons.append(choice["index"])
    assert texts == [str(2**63 - 2), str(2**63 - 1), str(-(2**63))]
    assert sorted(reasons) == [0, 1, 2]
    assert found[-1]["usage"]["prompt_tokens"] == 5


async def test_one_of_n_that_fails_ends_the_others(http: httpx.AsyncClient, box: PlayedBox) -> None:
    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, 1)
        if request.sampling.seed == 2:
            yield Failed(request.id, "worker_crashed", "the worker died")
            return
        await asyncio.Event().wait()

    box.scripts["guide"] = script
    response = await http.post(CHAT, json=asks(n=3, seed=1))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "worker_crashed")
    assert box.open == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_name_tokens_bytes_and_alternatives(
    http: httpx.AsyncClient, box: PlayedBox, stream: bool
) -> None:
    box.scripts["guide"] = numbered
    body = asks(logprobs=True, top_logprobs=1, seed=4, stream=stream)
    response = await http.post(CHAT, json=body)
    assert box.asked[0][1].logprobs == 1
    replies = chunks(response.text) if stream else [response.json()]
    found = [
        each
        for reply in replies
        for choice in reply["choices"]
        for each in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert found == [
        {
            "token": "4",
            "logprob": -0.5,
            "bytes": [52],
            "top_logprobs": [{"token": "\ufffd", "logprob": -1.5, "bytes": [255]}],
        }
    ]
