"""Anthropic's dialect: what a request becomes, and what its answer looks like."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic.types import (
    ErrorResponse,
    Message,
    MessageTokensCount,
    RawMessageStreamEvent,
)
from pydantic import BaseModel, TypeAdapter

from edged import errors
from edged.api import events as api_events
from edged.api.anthropic.schema import REFUSED, MessagesRequest
from edged.config import Server
from edged.protocol import (
    CallDelta,
    Delta,
    Event,
    Failed,
    Finish,
    Generate,
    JsonSchema,
    Messages,
    Render,
    Rendered,
    Sampling,
    Started,
    ToolChoice,
    Usage,
)
from tests.api.conftest import PlayedBox, Script, eventually, failing, plan_of

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


def messages_asked(box: PlayedBox) -> list[dict[str, Any]]:
    prompt = asked(box).prompt
    assert isinstance(prompt, Messages)
    return prompt.messages


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


# ── requests ──


async def test_turns_and_blocks_become_messages(box: PlayedBox, http: httpx.AsyncClient) -> None:
    question = [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"type": "text", "text": "b"},
    ]
    answer = [
        {"type": "thinking", "thinking": "hm", "signature": "edged"},
        {"type": "redacted_thinking", "data": "AAAA"},
        {"type": "text", "text": "Let me see.", "citations": None},
        CALL,
        CALL | {"id": "toolu_2", "input": {}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "rain"},
        {
            "type": "tool_result",
            "tool_use_id": "toolu_2",
            "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "city"}],
            "is_error": True,
        },
        {"type": "text", "text": "And?"},
    ]
    asks = body(
        system=[{"type": "text", "text": "S1"}, {"type": "text", "text": "S2"}],
        messages=[
            {"role": "user", "content": "first"},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": results},
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Now."},
        ],
        tools=[WEATHER],
    )
    assert (await http.post(PATH, json=asks)).status_code == 200
    assert messages_asked(box) == [
        {"role": "system", "content": "S1\nS2"},
        {"role": "user", "content": "first\na\nb"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "hm",
            "tool_calls": [
                {
                    "id": "toolu_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Oslo"}},
                },
                {
                    "id": "toolu_2",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {}},
                },
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "name": "weather", "content": "rain"},
        {
            "role": "tool",
            "tool_call_id": "toolu_2",
            "name": "weather",
            "content": "Error: no\ncity",
        },
        {"role": "user", "content": "And?"},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Now."},
    ]
    prompt = asked(box).prompt
    assert isinstance(prompt, Messages)
    assert prompt.tools == [WEATHER_FUNCTION]
    assert not prompt.continue_last


async def test_everything_of_generate_is_said(box: PlayedBox, http: httpx.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    asks = body(
        max_tokens=9000,
        stop_sequences=["x", "\n"],
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        seed=-3,
        thinking={"type": "enabled", "budget_tokens": 1024, "display": "summarized"},
        output_config={"effort": "max", "format": {"type": "json_schema", "schema": schema}},
        chat_template_kwargs={"mood": "good"},
        metadata={"user_id": "u"},
        service_tier="standard_only",
        cache_control={"type": "ephemeral"},
    )
    assert (await http.post(PATH, json=asks)).status_code == 200
    assert asked(box) == Generate(
        prompt=Messages(
            messages=HI,
            template_kwargs={"reasoning_effort": "high", "enable_thinking": True, "mood": "good"},
        ),
        sampling=Sampling(temperature=0.5, top_p=0.25, top_k=7, seed=-3),
        max_tokens=9000,
        stop=["x", "\n"],
        constraint=JsonSchema(schema),
        reasoning_budget=1024,
    )


@pytest.mark.parametrize(
    ("more", "kwargs", "budget"),
    [
        ({}, {}, None),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}, 0),
        ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True}, None),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}, 1024),
        (
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "medium"}},
            {"enable_thinking": True, "reasoning_effort": "medium"},
            8192,
        ),
    ],
)
async def test_thinking_is_told_to_the_template_and_bounded(
    box: PlayedBox,
    http: httpx.AsyncClient,
    more: dict[str, Any],
    kwargs: dict[str, Any],
    budget: int | None,
) -> None:
    assert (await http.post(PATH, json=body(**more))).status_code == 200
    prompt = asked(box).prompt
    assert isinstance(prompt, Messages)
    assert (prompt.template_kwargs, asked(box).reasoning_budget) == (kwargs, budget)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice()),
        ({"type": "auto"}, ToolChoice()),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(parallel=False)),
        ({"type": "any"}, ToolChoice("required")),
        (
            {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            ToolChoice("required", ["weather"], parallel=False),
        ),
        ({"type": "none"}, ToolChoice("none")),
    ],
)
async def test_tool_choice(
    box: PlayedBox, http: httpx.AsyncClient, choice: Any, expected: ToolChoice
) -> None:
    asks = body(tools=[WEATHER], tool_choice=choice)
    assert (await http.post(PATH, json=asks)).status_code == 200
    assert asked(box).tool_choice == expected
    prompt = asked(box).prompt
    assert isinstance(prompt, Messages)
    assert prompt.tools == (None if expected.mode == "none" else [WEATHER_FUNCTION])


async def test_tool_says_all_that_it_has(box: PlayedBox, http: httpx.AsyncClient) -> None:
    tool = WEATHER | {
        "type": "custom",
        "strict": True,
        "input_examples": [{"city": "Oslo"}],
        "allowed_callers": ["direct"],
        "defer_loading": False,
        "eager_input_streaming": True,
        "cache_control": {"type": "ephemeral"},
    }
    assert (await http.post(PATH, json=body(tools=[tool]))).status_code == 200
    prompt = asked(box).prompt
    assert isinstance(prompt, Messages)
    assert prompt.tools is not None
    function = prompt.tools[0]["function"]
    assert function["strict"] is True
    assert function["description"] == (
        'Tells the weather.\nExamples of its input:\n{"city":"Oslo"}'
    )


@pytest.mark.parametrize(
    ("last", "content", "goes_on"),
    [
        ("The answer is (", "The answer is (", True),
        ([{"type": "text", "text": "a "}, {"type": "text", "text": "b "}], "a b ", True),
        ("", "hi", False),
        ([], "hi", False),
    ],
)
async def test_last_message_of_the_assistant_is_gone_on_with(
    box: PlayedBox, http: httpx.AsyncClient, last: Any, content: str, goes_on: bool
) -> None:
    asks = body(messages=[*HI, {"role": "assistant", "content": last}])
    assert (await http.post(PATH, json=asks)).status_code == 200
    prompt = asked(box).prompt
    assert isinstance(prompt, Messages)
    assert prompt.messages[-1]["content"] == content
    assert prompt.continue_last is goes_on


async def test_documents_and_search_results_are_text(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    text = {"type": "text", "media_type": "text/plain", "data": "It rains."}
    blocks = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    content = [
        {"type": "document", "source": text, "title": "T", "context": "C"},
        {
            "type": "document",
            "source": {"type": "content", "content": blocks},
            "citations": {"enabled": False},
        },
        {"type": "search_result", "source": "http://x", "title": "X", "content": blocks},
    ]
    asks = body(messages=[{"role": "user", "content": content}])
    assert (await http.post(PATH, json=asks)).status_code == 200
    assert messages_asked(box)[0]["content"] == (
        "<document>\n<title>T</title>\n<context>C</context>\nIt rains.\n</document>\n"
        "<document>\na\nb\n</document>\n"
        "<search_result>\n<source>http://x</source>\n<title>X</title>\na\nb\n</search_result>"
    )


async def test_body_of_claude_code_is_answered(box: PlayedBox, http: httpx.AsyncClient) -> None:
    ephemeral = {"type": "ephemeral"}
    stamp = "x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch={};"

    def asks(cch: str) -> dict[str, Any]:
        return {
            "model": "guide",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "<system-reminder>x</system-reminder>"},
                        {"type": "text", "text": "hi", "cache_control": ephemeral},
                    ],
                }
            ],
            "system": [
                {"type": "text", "text": stamp.format(cch)},
                {
                    "type": "text",
                    "text": "You are Claude Code.",
                    "cache_control": ephemeral | {"scope": "global"},
                },
            ],
            "tools": [WEATHER | {"cache_control": ephemeral}],
            "metadata": {"user_id": '{"device_id":"d","session_id":"s"}'},
            "max_tokens": 32000,
            "thinking": {"type": "enabled", "budget_tokens": 31999},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "output_config": {"effort": "medium"},
            "stream": True,
        }

    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
        "x-api-key": "sk-none",
        "x-app": "cli",
    }
    prompts = []
    for cch in ("a5145", "00f1e"):
        response = await http.post(f"{PATH}?beta=true", json=asks(cch), headers=headers)
        assert response.status_code == 200, response.text
        assert sse(response.text)[-1][0] == "message_stop"
        prompts.append(asked(box).prompt)
    assert prompts[0] == prompts[1], "a stamp kept the prompt from being reused"
    assert "cc_version=2.1.101.e51" in messages_asked(box)[0]["content"]


# ── refusals ──

PDF = {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"metadata": {"user_id": 1}}, "metadata.user_id"),
        ({"service_tier": "fast"}, "service_tier"),
        ({"cache_control": {"type": "forever"}}, "cache_control.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format"),
        ({"output_config": {"format": {"type": "json_schema", "schema": 1}}}, "output_config.for"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"tools": [WEATHER | {"input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tools": [WEATHER | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [WEATHER | {"allowed_callers": ["code"]}]}, "tools[0].allowed_callers"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"type": "computer_20250124", "name": "computer"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": "auto"}, "tool_choice"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_m"),
        ({"speed": "fast"}, "speed"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "any"},
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
            },
            "output_config.format",
        ),
    ],
)
async def test_bad_value_is_named(
    box: PlayedBox, http: httpx.AsyncClient, more: dict[str, Any], param: str
) -> None:
    response = await http.post(PATH, json=body(**more))
    assert response.status_code == 400, response.text
    problem = strict(ErrorResponse, json.dumps(without_details(response))).error
    assert problem.type == "invalid_request_error"
    details = response.json()["error"]["details"]
    assert details["param"].startswith(param)
    assert details["param"] in problem.message
    assert not box.asked


def without_details(response: httpx.Response) -> dict[str, Any]:
    """Return the error but for `details`, which the published types know beside the object."""
    value: dict[str, Any] = response.json()
    value["error"] = {k: v for k, v in value["error"].items() if k != "details"}
    return value


@pytest.mark.parametrize(
    ("role", "block", "at"),
    [
        ("user", {"type": "image", "source": {"type": "url", "url": "http://x"}}, ""),
        ("user", {"type": "image", "source": {"type": "base64", "data": "AAAA"}}, ""),
        ("user", {"type": "document", "source": PDF}, ".source"),
        ("user", {"type": "document", "source": {"type": "file", "file_id": "f"}}, ".source"),
        (
            "user",
            {
                "type": "document",
                "source": {"type": "text", "data": "a"},
                "citations": {"enabled": True},
            },
            ".citations",
        ),
        ("user", {"type": "container_upload", "file_id": "f"}, ""),
        ("assistant", {"type": "server_tool_use", "id": "a", "name": "b", "input": {}}, ""),
        ("user", {"type": "thinking", "thinking": "a"}, ""),
        ("user", CALL, ""),
        ("assistant", {"type": "tool_result", "tool_use_id": "toolu_1"}, ""),
        ("user", {"type": "tool_result", "tool_use_id": "toolu_9"}, ".tool_use_id"),
        ("user", {"type": "video"}, ".type"),
        ("user", {"type": "text", "text": 1}, ".text"),
        ("assistant", CALL | {"input": "{}"}, ".input"),
    ],
)
async def test_block_that_cannot_be_honoured_is_named(
    box: PlayedBox, http: httpx.AsyncClient, role: str, block: dict[str, Any], at: str
) -> None:
    turn = {"role": role, "content": [{"type": "text", "text": "a"}, block]}
    response = await http.post(PATH, json=body(messages=[*HI, turn]))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["details"]["param"] == f"messages[1].content[1]{at}"
    assert not box.asked


async def test_image_in_a_tool_result_is_refused_by_its_path(http: httpx.AsyncClient) -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "image"}]}
    turns = [*HI, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [result]}]
    response = await http.post(PATH, json=body(messages=turns))
    assert response.json()["error"]["details"] == {
        "error_code": "unsupported_parameter",
        "param": "messages[2].content[0].content[0]",
    }


async def test_call_that_nobody_answered_is_refused(http: httpx.AsyncClient) -> None:
    turns = [*HI, {"role": "assistant", "content": [CALL]}]
    response = await http.post(PATH, json=body(messages=turns))
    assert response.status_code == 400
    assert "tool_result" in response.json()["error"]["message"]


@pytest.mark.parametrize("name", sorted(REFUSED))
async def test_refused_parameter_passes_when_it_asks_for_nothing(
    http: httpx.AsyncClient, name: str
) -> None:
    for neutral in (None, *(REFUSED[name] or ())):
        assert (await http.post(PATH, json=body(**{name: neutral}))).status_code == 200
    response = await http.post(PATH, json=body(**{name: ["something"]}))
    assert (response.status_code, response.json()["error"]["details"]["param"]) == (400, name)


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


# ── documents ──

DOCS = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
SECTION = DOCS.partition("## Anthropic messages")[2].partition("\n## ")[0]


def test_every_parameter_is_documented() -> None:
    rows = re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \|", SECTION, flags=re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([a-z_]+)`", row)]
    assert set(named) == set(MessagesRequest.__struct_fields__)
    refused = SECTION.partition("Refused parameters: ")[2].partition("\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", refused)) == set(REFUSED)
