"""The Anthropic SDK against /v1/messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from appliance import (
    CALLER,
    FORECAST,
    GUIDE,
    KEY,
    LIMIT_S,
    LONG,
    PARAMETERS,
    QUESTION,
    TOO_SHORT_S,
    URL,
    is_forecast,
)

TOOL: dict[str, Any] = {
    "name": FORECAST["name"],
    "description": FORECAST["description"],
    "input_schema": PARAMETERS,
}


@pytest.fixture
def sdk() -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=LIMIT_S) as client:
        yield client


def check_answer_has_words_and_usage(sdk: anthropic.Anthropic) -> None:
    reply = sdk.messages.create(model=GUIDE, messages=QUESTION, max_tokens=60)
    [block] = reply.content
    assert block.type == "text"
    assert "edged" in block.text
    assert reply.stop_reason in {"end_turn", "max_tokens"}
    assert reply.usage.input_tokens > 0 < reply.usage.output_tokens


def check_stream_is_the_whole_answer(sdk: anthropic.Anthropic) -> None:
    whole = sdk.messages.create(model=GUIDE, messages=QUESTION, max_tokens=20)
    with sdk.messages.stream(model=GUIDE, messages=QUESTION, max_tokens=20) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


async def check_async_stream() -> None:
    async with anthropic.AsyncAnthropic(base_url=URL, api_key=KEY, timeout=LIMIT_S) as sdk:
        stream = await sdk.messages.create(
            model=GUIDE, messages=QUESTION, max_tokens=10, stream=True
        )
        kinds = [event.type async for event in stream]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"


def check_system_and_stop_sequence(sdk: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {
        "model": GUIDE, "system": "Be short.", "messages": QUESTION, "max_tokens": 40
    }  # fmt: skip
    text = sdk.messages.create(**asked).content[0].text
    stop = text.split()[2]
    reply = sdk.messages.create(**asked, stop_sequences=[stop])
    assert reply.stop_reason == "stop_sequence"
    assert reply.stop_sequence == stop
    assert reply.content[0].text == text[: text.index(stop)]


def check_tool_use_and_its_result(sdk: anthropic.Anthropic) -> None:
    reply = sdk.messages.create(
        model=CALLER,
        messages=QUESTION,
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        max_tokens=200,
    )
    assert reply.stop_reason == "tool_use"
    [use] = [block for block in reply.content if block.type == "tool_use"]
    assert is_forecast(use.input)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    after = sdk.messages.create(
        model=CALLER,
        messages=[
            *QUESTION,
            {"role": "assistant", "content": reply.content},
            {"role": "user", "content": [result]},
        ],
        tools=[TOOL],
        tool_choice={"type": "none"},
        max_tokens=8,
    )
    assert after.content[0].type == "text"


def check_streamed_tool_use(sdk: anthropic.Anthropic) -> None:
    with sdk.messages.stream(
        model=CALLER,
        messages=QUESTION,
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "forecast", "disable_parallel_tool_use": True},
        max_tokens=200,
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert "input_json" in kinds
    assert is_forecast(final.content[-1].input)


def check_count_tokens(sdk: anthropic.Anthropic) -> None:
    counted = sdk.messages.count_tokens(model=GUIDE, messages=QUESTION)
    reply = sdk.messages.create(model=GUIDE, messages=QUESTION, max_tokens=1)
    usage = reply.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def check_errors_are_the_sdks_own(sdk: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        sdk.messages.create(model="nobody", messages=QUESTION, max_tokens=5)
    with pytest.raises(anthropic.BadRequestError):
        sdk.messages.create(model=GUIDE, messages=QUESTION, max_tokens=-5)
    with pytest.raises(anthropic.APITimeoutError):
        sdk.with_options(timeout=TOO_SHORT_S).messages.create(
            model=CALLER, messages=QUESTION, max_tokens=LONG, extra_body={"ignore_eos": True}
        )


def check_stream_may_be_left(sdk: anthropic.Anthropic) -> None:
    with sdk.messages.stream(model=CALLER, messages=QUESTION, max_tokens=LONG) as stream:
        next(iter(stream))
