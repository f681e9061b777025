"""Anthropic's dialect: what a request becomes, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic.types import ErrorResponse

from edged.api.anthropic.schema import REFUSED, MessagesRequest
from edged.protocol import (
    Generate,
    JsonSchema,
    Messages,
    Sampling,
    ToolChoice,
)
from tests.api.conftest import PlayedBox
from tests.api.messages_forms import (
    CALL,
    HI,
    IMAGE,
    PATH,
    WEATHER,
    WEATHER_FUNCTION,
    asked,
    body,
    messages_asked,
    prompt_asked,
    seeing,
    sse,
    strict,
    without_details,
)

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
    prompt = prompt_asked(box)
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
        min_p=0.5,
        repeat_penalty=1.5,
        ignore_eos=True,
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
        sampling=Sampling(
            temperature=0.5,
            top_p=0.25,
            top_k=7,
            seed=-3,
            min_p=0.5,
            repeat_penalty=1.5,
            ignore_eos=True,
        ),
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
    prompt = prompt_asked(box)
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
    prompt = prompt_asked(box)
    assert prompt.tools == (None if expected.mode == "none" else [WEATHER_FUNCTION])


async def test_format_of_the_content_yields_to_a_call_that_must_be(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    asks = body(tools=[WEATHER], output_config={"format": form})
    assert (await http.post(PATH, json=asks)).status_code == 200
    assert asked(box).constraint == JsonSchema({"type": "object"})
    assert (await http.post(PATH, json=asks | {"tool_choice": {"type": "any"}})).status_code == 200
    assert asked(box).constraint is None


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
    prompt = prompt_asked(box)
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
    prompt = prompt_asked(box)
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
    """What Claude Code 2.1.197 sends in its second turn, but for the length of its prompts."""
    ephemeral = {"type": "ephemeral"}
    stamp = "x-anthropic-billing-header: cc_version=2.1.197.123; cc_entrypoint=cli; cch={};"
    question = [
        {"type": "text", "text": "<system-reminder>x</system-reminder>"},
        {"type": "text", "text": "say hi"},
    ]
    answer = [
        {"type": "thinking", "thinking": "I should look.", "signature": "edged"},
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
    ]
    result = {
        "tool_use_id": "c1",
        "type": "tool_result",
        "content": "rain",
        "is_error": False,
        "cache_control": ephemeral,
    }

    def asks(cch: str) -> dict[str, Any]:
        return {
            "model": "guide",
            "messages": [
                {"role": "user", "content": question},
                {"role": "system", "content": "Available agent types: claude"},
                {"role": "assistant", "content": answer},
                {"role": "user", "content": [result]},
            ],
            "system": [
                {"type": "text", "text": stamp.format(cch)},
                {
                    "type": "text",
                    "text": "You are a Claude agent.",
                    "cache_control": ephemeral | {"scope": "global"},
                },
            ],
            "tools": [WEATHER | {"cache_control": ephemeral}],
            "metadata": {"user_id": '{"device_id":"d","account_uuid":"","session_id":"s"}'},
            "max_tokens": 32000,
            "thinking": {"type": "adaptive"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "output_config": {"effort": "high"},
            "stream": True,
        }

    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,mid-conversation-system-2026-04-07",
        "x-api-key": "none",
        "x-app": "cli",
    }
    prompts = []
    for cch in ("a5145", "00f1e"):
        response = await http.post(f"{PATH}?beta=true", json=asks(cch), headers=headers)
        assert response.status_code == 200, response.text
        assert sse(response.text)[-1][0] == "message_stop"
        prompts.append(asked(box).prompt)
    assert prompts[0] == prompts[1], "a stamp kept the prompt from being reused"
    assert "cc_version=2.1.197.123" in messages_asked(box)[0]["content"]
    roles = [message["role"] for message in messages_asked(box)]
    assert roles == ["system", "user", "system", "assistant", "tool"]


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


@pytest.mark.parametrize(
    ("role", "block", "at"),
    [
        ("user", IMAGE, ".source.data"),
        ("user", {"type": "image", "source": {"type": "url", "url": "http://x"}}, ".source.url"),
        ("user", {"type": "image", "source": {"type": "file", "file_id": "f"}}, ".source"),
        ("user", {"type": "image", "source": PDF}, ".source.media_type"),
        ("assistant", IMAGE, ""),
        ("system", IMAGE, ""),
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


async def test_images_stand_among_the_text_and_come_decoded(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    box.plan.models["guide"] = seeing(box.plan.models["guide"])
    text = {"type": "text", "text": "a"}
    content = {"type": "content", "content": [text, IMAGE]}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [IMAGE], "is_error": True}
    turns = [
        {"role": "user", "content": "see"},
        {"role": "user", "content": [text, IMAGE, {"type": "document", "source": content}]},
        {"role": "assistant", "content": [CALL]},
        {"role": "user", "content": [result]},
    ]
    assert (await http.post(PATH, json=body(messages=turns))).status_code == 200
    prompt = prompt_asked(box)
    assert [(m.kind, m.width, m.height, m.data) for m in prompt.media] == [
        ("image", 2, 1, b"\xff\x00\x00\x00\x00\xff")
    ] * 3
    texts = [
        [part.get("text", part["type"]) for part in message["content"]]
        for message in (prompt.messages[0], prompt.messages[2])
    ]
    assert texts == [
        ["see", "a", "image", "<document>", "a", "image", "</document>"],
        ["Error: ", "image"],
    ]


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


# ── documents ──

DOCS = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
SECTION = DOCS.partition("## Anthropic messages")[2].partition("\n## ")[0]


def test_every_parameter_is_documented() -> None:
    rows = re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \|", SECTION, flags=re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([a-z_]+)`", row)]
    assert set(named) == set(MessagesRequest.__struct_fields__)
    refused = SECTION.partition("Refused parameters: ")[2].partition("\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", refused)) == set(REFUSED)
