"""The Responses API: what a request becomes, and what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from openai.types.responses.input_token_count_response import InputTokenCountResponse
from structlog.testing import capture_logs

from edged.api.openai.responses import schema
from edged.protocol import (
    Event,
    JsonSchema,
    Render,
    Rendered,
    ToolChoice,
)
from tests.api import media_files as files
from tests.api.conftest import PlayedBox
from tests.api.responses_support import (
    CALL,
    PATH,
    RETURNED,
    WEATHER,
    ask,
    asks,
    prompt,
    refused,
    strictly,
)


async def test_items_become_messages(http: httpx.AsyncClient, box: PlayedBox) -> None:
    text = base64.b64encode("ein Täxt".encode()).decode()
    await ask(
        http,
        input=[
            {"role": "developer", "content": "Rules."},
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "one"},
                    {"type": "input_text", "text": "two"},
                    {
                        "type": "input_file",
                        "filename": "a.txt",
                        "file_data": f"data:text/plain;base64,{text}",
                    },
                ],
            },
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [
                {"type": "reasoning_text", "text": "thinking"}]},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [
                    {"type": "output_text", "text": "said", "annotations": [], "logprobs": []},
                    {"type": "refusal", "refusal": "no"},
                ],
            },
            CALL,
            CALL | {"call_id": "call_2", "arguments": "not json"},
            RETURNED,
            RETURNED | {"call_id": "call_2", "output": [{"type": "input_text", "text": "sun"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "in short"}]},
        ],
        tools=[WEATHER],
    )  # fmt: skip
    assert prompt(box).messages == [
        {"role": "system", "content": "Rules."},
        {"role": "user", "content": 'one\ntwo\n<file name="a.txt">\nein Täxt\n</file>'},
        {
            "role": "assistant",
            "content": "said\nno",
            "reasoning_content": "thinking",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Oslo"}},
                },
                {
                    "id": "call_2",
                    "type": "function",
                    "function": {"name": "weather", "arguments": "not json"},
                },
            ],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "call_1", "name": "weather"},
        {"role": "tool", "content": "sun", "tool_call_id": "call_2", "name": "weather"},
        {"role": "assistant", "content": "", "reasoning_content": "in short"},
    ]


async def test_tools_and_formats_reach_the_engine(http: httpx.AsyncClient, box: PlayedBox) -> None:
    reply = await ask(
        http,
        tools=[WEATHER, {"type": "function", "name": "other"}],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        text={"format": {"type": "json_object"}},
    )
    assert reply["tools"][0] == WEATHER
    assert reply["tool_choice"] == {"type": "function", "name": "weather"}
    assert reply["parallel_tool_calls"] is False
    assert box.asked[-1][1].tool_choice == ToolChoice("required", ["weather"], parallel=False)
    # Agents send a format too; a call has no content to hold.
    assert box.asked[-1][1].constraint is None
    tools = prompt(box).tools
    assert tools is not None
    assert tools[0] == {
        "type": "function",
        "function": {name: WEATHER[name] for name in WEATHER if name != "type"},
    }
    allowed = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "weather"}],
    }
    assert (await ask(http, tools=[WEATHER], tool_choice=allowed))["tool_choice"] == allowed
    assert box.asked[-1][1].tool_choice == ToolChoice("auto", ["weather"])

    json_schema = {
        "type": "json_schema",
        "name": "point",
        "schema": {"type": "object", "properties": {"x": {"type": "integer"}}},
        "strict": True,
    }
    reply = await ask(http, text={"format": json_schema})
    assert reply["text"] == {"format": json_schema, "verbosity": "medium"}
    assert box.asked[-1][1].constraint == JsonSchema(json_schema["schema"])  # type: ignore[arg-type]
    await ask(http, text={"format": {"type": "json_object"}})
    assert box.asked[-1][1].constraint == JsonSchema({"type": "object"})
    await ask(http, text={"format": {"type": "text"}})
    assert box.asked[-1][1].constraint is None


async def test_samplers_of_the_other_endpoints_are_honoured_too(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    await ask(http, top_k=5, seed=7, stop=["\n"], min_p=0.1, logit_bias={"5": -100})
    asked = box.asked[-1][1]
    assert asked.stop == ["\n"]
    assert (asked.sampling.top_k, asked.sampling.seed, asked.sampling.min_p) == (5, 7, 0.1)
    assert asked.sampling.logit_bias == {5: -100}


async def test_sealed_reasoning_comes_back_as_it_was(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    reply = await ask(http, include=["reasoning.encrypted_content"], store=False)
    item = reply["output"][0]
    del item["content"]  # as clients do that keep nothing but what is opaque
    answer = {"role": "assistant", "content": "x"}
    await ask(http, input=[item, answer, {"role": "user", "content": "?"}])
    assert prompt(box).messages[0] == {
        "role": "assistant",
        "content": "x",
        "reasoning_content": "hm",
    }
    foreign = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAABo"}
    error = await refused(http, input=[{"role": "user", "content": "a"}, foreign])
    assert error["param"] == "input[1].encrypted_content"


async def test_image_reaches_the_worker_also_by_the_conversation(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    plan = box.plan.models["guide"]
    assert plan.launch
    assert plan.launch.llamacpp
    settings = replace(plan.launch.llamacpp, mmproj="/nowhere", media=("image", "audio"))
    seeing = replace(plan, launch=replace(plan.launch, llamacpp=settings))
    box.plan = replace(box.plan, models=box.plan.models | {"guide": seeing})
    image = {"type": "input_image", "image_url": files.url(files.image()), "detail": None}
    sound = files.sound_part(files.sound())
    text = {"type": "input_text", "text": "What is it?"}
    first = await ask(http, input=[{"role": "user", "content": [image, text, sound]}])
    listed = await http.get(f"{PATH}/{first['id']}/input_items")
    assert listed.json()["data"][0]["content"][0] == image | {"detail": "auto"}
    output = RETURNED | {"output": [image]}
    await ask(http, input=[CALL, output], previous_response_id=first["id"], tools=[WEATHER])
    user, _, tool = prompt(box).messages
    assert [part["type"] for part in user["content"]] == ["image", "text", "audio"]
    assert tool["content"] == [{"type": "image"}]
    assert [each.kind for each in prompt(box).media] == ["image", "audio", "image"]
    broken = image | {"image_url": "data:image/png;base64,AAAA"}
    error = await refused(http, input=[{"role": "user", "content": [broken]}])
    assert error["param"] == "input[0].content[0].image_url"
    error = await refused(http, input=[{"role": "system", "content": [image]}])
    assert error["param"] == "input[0].content[0]"


IMAGE = {"type": "input_image", "image_url": "https://example.org/a.png"}
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "invalid_value"),
    ({"input": []}, "input", "invalid_value"),
    ({"input": 5}, "input", "invalid_value"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
    ({"input": [{"role": "user"}]}, "input[0].content", "invalid_value"),
    ({"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
     "input[0].content[0].type", "invalid_value"),
    ({"input": [{"role": "user", "content": [IMAGE]}]},
     "input[0].content[0].image_url", "unsupported_parameter"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
     "input[0].content[0]", "unsupported_parameter"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type", "unsupported_parameter"),
    ({"input": [{"type": "nonsense"}]}, "input[0].type", "invalid_value"),
    ({"input": [RETURNED]}, "input[0].call_id", "invalid_value"),
    ({"input": [CALL | {"arguments": {}}]}, "input[0].arguments", "invalid_value"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
    ({"tools": [WEATHER, {"type": "mcp", "server_label": "x"}]},
     "tools[1].type", "unsupported_parameter"),
    ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type", "unsupported_parameter"),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "invalid_value"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name", "invalid_value"),
    ({"tools": [WEATHER | {"parameters": {"type": "array"}}]},
     "tools[0].parameters", "invalid_value"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}},
     "tool_choice", "invalid_value"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function"}},
     "tool_choice.name", "invalid_value"),
    ({"tools": [WEATHER], "tool_choice": {"type": "web_search_preview"}},
     "tool_choice.type", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tool_choice": "nonsense"}, "tool_choice", "invalid_value"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}},
     "text.format.schema", "invalid_value"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}},
     "text.format.name", "invalid_value"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
    ({"text": {"format": {"type": "json_object"}}, "grammar": "root ::= x"},
     "text.format", "invalid_value"),
    ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
    ({"reasoning": {"effort": "extreme"}}, "reasoning.effort", "invalid_value"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "unsupported_parameter"),
    ({"include": ["everything"]}, "include[0]", "invalid_value"),
    ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
    ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "invalid_value"),
    ({"metadata": {"": "x"}}, "metadata", "invalid_value"),
    ({"metadata": {"k" * 65: "x"}}, "metadata", "invalid_value"),
    ({"metadata": {"a": 1}}, "metadata", "invalid_value"),
    ({"metadata": {"a": "x" * 513}}, "metadata", "invalid_value"),
    ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
    ({"max_tool_calls": 0}, "max_tool_calls", "invalid_value"),
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"store": "yes"}, "store", "invalid_value"),
    ({"background": True, "store": False}, "background", "invalid_value"),
    ({"stream_options": {"include_obfuscation": True}, "stream": True},
     "stream_options.include_obfuscation", "unsupported_parameter"),
    ({"stream_options": {}}, "stream_options", "invalid_value"),
    ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
    ({"messages": []}, "messages", "unsupported_parameter"),
    ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
    ({"n": 2}, "n", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention", "unsupported_parameter"),
    ({"best_of": 3}, "best_of", "unsupported_parameter"),
    ({"service_tier": "gold"}, "service_tier", "invalid_value"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "param", "code"), BAD, ids=[str(each[0])[:60] for each in BAD])
async def test_what_cannot_be_honoured_is_refused_by_name(
    http: httpx.AsyncClient, box: PlayedBox, more: dict[str, Any], param: str, code: str
) -> None:
    error = await refused(http, **more)
    assert (error["param"], error["code"]) == (param, code), error["message"]
    assert not box.asked


async def test_names_that_nobody_knows_are_logged(http: httpx.AsyncClient) -> None:
    with capture_logs() as logs:
        await ask(http, fancy=1, n=1, conversation=None)
    assert logs[-1]["ignored_fields"] == ["fancy"]


async def test_input_tokens_are_counted_with_the_conversation(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    first = await ask(http)

    async def counting(request: Any) -> AsyncGenerator[Event, None]:
        assert isinstance(request, Render)
        yield Rendered(request.id, "…", 41)

    box.scripts["guide"] = counting
    body = asks(input="and?", previous_response_id=first["id"], instructions="Be brief.")
    response = await http.post(f"{PATH}/input_tokens", json=body)
    assert strictly(InputTokenCountResponse, response.text)["input_tokens"] == 41
    assert [m["role"] for m in prompt(box).messages] == ["system", "user", "assistant", "user"]
    for choice, n_tools in (("auto", 1), ("none", 0)):
        body = asks(tools=[WEATHER], tool_choice=choice)
        assert (await http.post(f"{PATH}/input_tokens", json=body)).status_code == 200
        assert len(prompt(box).tools or ()) == n_tools


# ── anything at all ──

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "name", "id"]), inner)
    ),
    max_leaves=8,
)
words = st.sampled_from(
    [*sorted(schema.ITEM_TYPES), "user", "input_text", "function", "json_schema", "allowed_tools"]
)
near = st.recursive(
    words | json_values,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["type", "role", "content", "text", "call_id", "arguments", "output", "summary",
             "encrypted_content", "image_url", "file_data", "name", "format", "schema", "tools"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=10,
)  # fmt: skip
bodies = st.dictionaries(
    st.sampled_from([*sorted(schema.HONOURED - {"model"}), *sorted(schema.REFUSED)]),
    near,
    max_size=4,
)


@given(body=bodies, given_input=near)
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_no_body_is_a_fault(
    http: httpx.AsyncClient, body: dict[str, Any], given_input: Any
) -> None:
    wanted = {"input": given_input} | body | {"model": "guide"}
    wanted.pop("background", None)
    response = await http.post(PATH, content=json.dumps(wanted))
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]
