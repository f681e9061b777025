"""The anthropic SDK, newest, against the whole daemon on edge-guide."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message, MessageParam, RawMessageStreamEvent, ToolParam
from pydantic import TypeAdapter

from tests.clients.conftest import CONTEXT, LIMIT_S, eventually

MODEL = "edge-guide"
PATH = "/v1/messages"
QUESTION: list[MessageParam] = [{"role": "user", "content": "What is edged?"}]
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
WISH: list[MessageParam] = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture
def claude(daemon: str) -> Iterator[anthropic.Anthropic]:
    http = anthropic.DefaultHttpxClient(trust_env=False)
    with anthropic.Anthropic(
        base_url=daemon, api_key="none", max_retries=0, timeout=LIMIT_S, http_client=http
    ) as client:
        yield client


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def prompt_tokens(message: Message) -> int:
    usage = message.usage
    return usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_whole_answer(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model="gpt-4o-mini", messages=QUESTION, max_tokens=60)
    assert "appliance" in text_of(message)
    assert message.model == MODEL
    assert message.stop_reason == "end_turn"
    assert 0 < message.usage.output_tokens <= 60
    assert message._request_id


def test_stream_accumulates_to_the_whole_answer(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(model=MODEL, messages=QUESTION, max_tokens=60)
    with claude.messages.stream(model=MODEL, messages=QUESTION, max_tokens=60) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
        assert stream.request_id
    assert text == text_of(whole) == text_of(final)
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert prompt_tokens(final) == prompt_tokens(whole)


def test_reply_and_events_are_strictly_of_the_published_types(raw: httpx.Client) -> None:
    asks = {
        "model": MODEL,
        "messages": WISH,
        "tools": [WEATHER],
        "tool_choice": {"type": "any"},
        "thinking": {"type": "adaptive"},
        "max_tokens": 100,
    }
    whole = TypeAdapter(Message).validate_json(raw.post(PATH, json=asks).content, strict=True)
    assert whole.content[-1].type == "tool_use"
    body = raw.post(PATH, json=asks | {"stream": True}).text
    events = [block.split("\ndata: ") for block in body.split("\n\n")[:-1]]
    for name, data in events:
        assert name == f"event: {json.loads(data)['type']}"
        if name != "event: ping":
            event: Any = TypeAdapter(RawMessageStreamEvent).validate_json(data, strict=True)
            assert not event.model_extra
    assert events[-1][0] == "event: message_stop"


def test_answer_goes_on_with_the_last_message(claude: anthropic.Anthropic) -> None:
    whole = text_of(claude.messages.create(model=MODEL, messages=QUESTION, max_tokens=60))
    begun = " ".join(whole.split()[:5])
    turns: list[MessageParam] = [*QUESTION, {"role": "assistant", "content": begun}]
    rest = claude.messages.create(model=MODEL, messages=turns, max_tokens=60)
    assert begun + text_of(rest) == whole


def test_stop_sequence_is_named(claude: anthropic.Anthropic) -> None:
    whole = text_of(claude.messages.create(model=MODEL, messages=QUESTION, max_tokens=60))
    word = whole.split()[3]
    message = claude.messages.create(
        model=MODEL, messages=QUESTION, max_tokens=60, stop_sequences=["@@@", word]
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", word)
    assert text_of(message) == whole[: whole.index(word)]


def test_max_tokens_and_the_context_are_told_apart(claude: anthropic.Anthropic) -> None:
    more = {"ignore_eos": True}
    cut = claude.messages.create(model=MODEL, messages=QUESTION, max_tokens=5, extra_body=more)
    assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 5)
    long: list[MessageParam] = [{"role": "user", "content": "no " * (CONTEXT - 40)}]
    n_prompt = claude.messages.count_tokens(model=MODEL, messages=long).input_tokens
    assert CONTEXT - 40 <= n_prompt < CONTEXT, "the word is one token no more"
    full = claude.messages.create(
        model=MODEL, messages=long, max_tokens=2 * CONTEXT, extra_body=more
    )
    assert full.stop_reason == "model_context_window_exceeded"
    assert prompt_tokens(full) + full.usage.output_tokens == CONTEXT


def test_tool_is_called_and_its_result_is_read(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(
        model=MODEL,
        messages=WISH,
        tools=[WEATHER],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        max_tokens=100,
    )
    assert message.stop_reason == "tool_use"
    use = message.content[-1]
    assert use.type == "tool_use"
    assert use.name == "get_weather"
    assert isinstance(use.input["city"], str)
    turns: list[MessageParam] = [
        *WISH,
        {"role": "assistant", "content": message.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny, 21 °C"}],
        },
    ]
    after = claude.messages.create(model=MODEL, messages=turns, tools=[WEATHER], max_tokens=100)
    assert "sunny" in text_of(after)


def test_streamed_call_is_the_whole_one(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(
        model=MODEL,
        messages=WISH,
        tools=[WEATHER],
        tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
        max_tokens=100,
    ) as stream:
        kinds = [event.type for event in stream]
        [use] = stream.get_final_message().content
    assert "input_json" in kinds
    assert use.type == "tool_use"
    assert use.input.keys() == {"city"}


def test_tool_choice_none_calls_nothing(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(
        model=MODEL, messages=WISH, tools=[WEATHER], tool_choice={"type": "none"}, max_tokens=40
    )
    assert {block.type for block in message.content} == {"text"}


def test_thinking_is_a_block_and_comes_back(claude: anthropic.Anthropic) -> None:
    asks: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 100}
    quiet = claude.messages.create(**asks, thinking={"type": "disabled"})
    assert [block.type for block in quiet.content] == ["text"]
    thinks: Any = {"type": "enabled", "budget_tokens": 50}
    with claude.messages.stream(**asks, thinking=thinks) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert {"thinking", "signature", "text"} <= kinds
    thinking, text = final.content
    assert thinking.type == "thinking"
    assert thinking.thinking
    assert thinking.signature
    assert text.type == "text"
    assert final.usage.output_tokens_details is not None
    assert 0 < final.usage.output_tokens_details.thinking_tokens <= 50
    turns = [*QUESTION, {"role": "assistant", "content": final.content}, *QUESTION]
    again = claude.messages.create(**asks | {"messages": turns}, thinking=thinks)
    assert again.content


def test_answer_obeys_a_schema(claude: anthropic.Anthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}, "word": {"enum": ["a", "b"]}},
        "required": ["yes", "word"],
        "additionalProperties": False,
    }
    message = claude.messages.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=60,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    value = json.loads(text_of(message))
    assert isinstance(value["yes"], bool)
    assert value["word"] in {"a", "b"}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"system": "Be brief."},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": {"type": "any"}},
        {"tools": [WEATHER], "tool_choice": {"type": "none"}},
        {"thinking": {"type": "adaptive"}},
        {"thinking": {"type": "disabled"}},
        {"messages": [*QUESTION, {"role": "assistant", "content": "edged is"}]},
    ],
)
def test_count_is_what_the_request_uses(claude: anthropic.Anthropic, more: dict[str, Any]) -> None:
    asks = {"model": MODEL, "messages": QUESTION} | more
    counted = claude.messages.count_tokens(**asks)
    message = claude.messages.create(**asks, max_tokens=5)
    assert counted.input_tokens == prompt_tokens(message)


def test_beginning_of_a_prompt_is_reused_and_told(claude: anthropic.Anthropic) -> None:
    system: Any = [{"type": "text", "text": "One two three. " * 20}]
    system[0]["cache_control"] = {"type": "ephemeral"}
    asks: dict[str, Any] = {"model": MODEL, "system": system, "max_tokens": 5}
    claude.messages.create(**asks, messages=QUESTION)
    message = claude.messages.create(**asks, messages=WISH)
    assert (message.usage.cache_read_input_tokens or 0) > message.usage.input_tokens


def test_beta_route_of_the_sdk(claude: anthropic.Anthropic) -> None:
    message = claude.beta.messages.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is edged?"}],
        max_tokens=20,
        betas=["interleaved-thinking-2025-05-14"],
        context_management={"edits": []},
    )
    assert message.content[0].type == "text"


@pytest.mark.parametrize(
    ("more", "kind", "code"),
    [
        ({"model": "nobody"}, anthropic.NotFoundError, "model_not_found"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "invalid_value"),
        ({"messages": []}, anthropic.BadRequestError, "invalid_value"),
        (
            {"messages": [{"role": "user", "content": "a b c d " * CONTEXT}]},
            anthropic.BadRequestError,
            "context_length_exceeded",
        ),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            anthropic.BadRequestError,
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": "a" * (2 << 20)}]},
            anthropic.RequestTooLargeError,
            "body_too_large",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_error_is_the_sdks_own(
    claude: anthropic.Anthropic, more: dict[str, Any], kind: Any, code: str, *, stream: bool
) -> None:
    asks: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 5} | more
    with pytest.raises(kind) as caught:
        claude.messages.create(**asks, stream=stream)
    assert caught.value.error_code == code
    assert caught.value.request_id
    assert caught.value.api_message


def test_prompt_that_is_too_long_is_said_in_anthropics_words(claude: anthropic.Anthropic) -> None:
    """Claude Code reads both figures and makes its conversation shorter."""
    long: list[MessageParam] = [{"role": "user", "content": "no " * CONTEXT}]
    n_prompt = claude.messages.count_tokens(model=MODEL, messages=long).input_tokens
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model=MODEL, messages=long, max_tokens=5)
    said = f"prompt is too long: {n_prompt} tokens > {CONTEXT} maximum"
    assert (caught.value.api_message or "").startswith(said)


def test_stream_that_is_left_frees_its_place(
    claude: anthropic.Anthropic, raw: httpx.Client
) -> None:
    with claude.messages.stream(
        model=MODEL, messages=QUESTION, max_tokens=CONTEXT, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream.text_stream))

    def idle() -> bool:
        [model] = [m for m in raw.get("/status").json()["models"] if m["name"] == MODEL]
        return model["open"] == 0

    assert eventually(idle)
