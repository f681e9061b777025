"""The openai SDK, newest and 1.x: every resource that edged serves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from appliance import (
    CALLER,
    CLOCK,
    EMBEDDER,
    FORECAST,
    GUIDE,
    KEY,
    LIMIT_S,
    LONG,
    QUESTION,
    TOO_SHORT_S,
    TOOL,
    V1,
    is_forecast,
)


class Forecast(BaseModel):
    city: Literal["Berlin", "Paris"]
    sunny: bool


def cosine(one: list[float], other: list[float]) -> float:
    """Vectors of length 1; what shares a batch changes the last digits."""
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.fixture
def sdk() -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0, timeout=LIMIT_S) as client:
        yield client


@pytest.fixture
async def asdk() -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=V1, api_key=KEY, max_retries=0, timeout=LIMIT_S
    ) as client:
        yield client


# ── models ──


def check_models(sdk: openai.OpenAI) -> None:
    names = {model.id for model in sdk.models.list()}
    assert {GUIDE, CALLER} <= names
    assert sdk.models.retrieve(GUIDE).object == "model"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("nobody")


# ── chat ──


def check_answer_has_words_and_usage(sdk: openai.OpenAI) -> None:
    reply = sdk.chat.completions.create(model=GUIDE, messages=QUESTION, max_tokens=60)
    assert "edged" in reply.choices[0].message.content
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def check_stream_is_the_whole_answer(sdk: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": GUIDE, "messages": QUESTION, "max_tokens": 40}
    whole = sdk.chat.completions.create(**asked)
    chunks = list(
        sdk.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


async def check_async_stream(asdk: openai.AsyncOpenAI) -> None:
    stream = await asdk.chat.completions.create(
        model=GUIDE, messages=QUESTION, max_tokens=10, stream=True
    )
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def check_stream_helper(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(model=GUIDE, messages=QUESTION) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta"} <= kinds
    assert final.choices[0].message.content


def check_several_answers(sdk: openai.OpenAI) -> None:
    reply = sdk.chat.completions.create(
        model=CALLER, messages=QUESTION, max_tokens=8, n=3, temperature=1
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in reply.choices}) > 1
    stream = sdk.chat.completions.create(
        model=CALLER, messages=QUESTION, max_tokens=8, n=3, stream=True
    )
    assert {c.choices[0].index for c in stream if c.choices} == {0, 1, 2}


def check_logprobs(sdk: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": GUIDE, "messages": QUESTION, "max_tokens": 6, "logprobs": True, "top_logprobs": 3
    }  # fmt: skip
    reply = sdk.chat.completions.create(**asked)
    tokens = reply.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == reply.choices[0].message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(each.logprob for each in token.top_logprobs) <= 0
    streamed = [
        token.token
        for chunk in sdk.chat.completions.create(**asked, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert streamed == [token.token for token in tokens]


# ── tools ──


def check_tool_call_and_its_answer(sdk: openai.OpenAI) -> None:
    messages = list(QUESTION)
    reply = sdk.chat.completions.create(
        model=CALLER, messages=messages, tools=[TOOL, CLOCK], tool_choice="required", max_tokens=200
    )
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls"
    messages.append(choice.message.model_dump(exclude_none=True))
    for call in choice.message.tool_calls:
        arguments = json.loads(call.function.arguments)
        assert call.id
        assert is_forecast(arguments) if call.function.name == "forecast" else arguments == {}
        messages.append({"role": "tool", "tool_call_id": call.id, "content": '{"sunny": true}'})
    after = sdk.chat.completions.create(
        model=CALLER, messages=messages, tools=[TOOL, CLOCK], tool_choice="none", max_tokens=8
    )
    assert after.choices[0].message.content
    assert after.choices[0].message.tool_calls is None
    alone = sdk.chat.completions.create(model=CALLER, messages=QUESTION, max_tokens=1)
    assert after.usage.prompt_tokens > alone.usage.prompt_tokens


def check_named_tool_is_called_once(sdk: openai.OpenAI) -> None:
    reply = sdk.chat.completions.create(
        model=CALLER,
        messages=QUESTION,
        tools=[TOOL, CLOCK],
        tool_choice={"type": "function", "function": {"name": "forecast"}},
        parallel_tool_calls=False,
        max_tokens=200,
    )
    [call] = reply.choices[0].message.tool_calls
    assert call.function.name == "forecast"
    assert is_forecast(json.loads(call.function.arguments))


def check_streamed_tool_call(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model=CALLER,
        messages=QUESTION,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
        stream=True,
    )
    chunks = [chunk.choices[0] for chunk in stream]
    pieces = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert pieces[0].id
    assert pieces[0].function.name == "forecast"
    assert all(piece.id is None for piece in pieces[1:])
    assert is_forecast(json.loads("".join(p.function.arguments or "" for p in pieces)))
    assert chunks[-1].finish_reason == "tool_calls"


def check_tools_may_stay_unused(sdk: openai.OpenAI) -> None:
    reply = sdk.chat.completions.create(
        model=CALLER, messages=QUESTION, tools=[TOOL], tool_choice="auto", max_tokens=8
    )
    assert reply.choices[0].finish_reason in {"length", "stop", "tool_calls"}


def check_parsed_tool(sdk: openai.OpenAI) -> None:
    parse = getattr(sdk.chat.completions, "parse", None) or sdk.beta.chat.completions.parse
    reply = parse(
        model=CALLER,
        messages=QUESTION,
        tools=[openai.pydantic_function_tool(Forecast)],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
    )
    [call] = reply.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Forecast)


# ── structured output ──


def check_parsed_answer(sdk: openai.OpenAI) -> None:
    parse = getattr(sdk.chat.completions, "parse", None) or sdk.beta.chat.completions.parse
    reply = parse(model=CALLER, messages=QUESTION, response_format=Forecast, max_tokens=200)
    assert isinstance(reply.choices[0].message.parsed, Forecast)


def check_parsed_stream(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(
        model=CALLER, messages=QUESTION, response_format=Forecast, max_tokens=200
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Forecast)


def check_json_object(sdk: openai.OpenAI) -> None:
    """Noise may be long, so it may be cut off; what is not cut off is an object."""
    for seed in range(4):
        reply = sdk.chat.completions.create(
            model=CALLER,
            messages=QUESTION,
            response_format={"type": "json_object"},
            max_tokens=300,
            seed=seed,
        )
        text = reply.choices[0].message.content
        assert text.lstrip().startswith("{")
        if reply.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(text), dict)


def check_schema_that_is_none_is_a_bad_request(sdk: openai.OpenAI) -> None:
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model=CALLER, messages=QUESTION, response_format=bad)
    assert caught.value.param.startswith("response_format")


# ── text completions ──


def check_completions(sdk: openai.OpenAI) -> None:
    reply = sdk.completions.create(
        model=GUIDE, prompt=["edged is", "models.toml"], max_tokens=5, echo=True, n=2
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[0].text.startswith("edged is")
    assert reply.choices[3].text.startswith("models.toml")
    likely = sdk.completions.create(model=GUIDE, prompt="edged is", max_tokens=5, logprobs=2)
    assert "".join(likely.choices[0].logprobs.tokens) == likely.choices[0].text
    assert len(likely.choices[0].logprobs.token_logprobs) == 5
    pieces = list(sdk.completions.create(model=GUIDE, prompt="edged", max_tokens=5, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces)


# ── embeddings ──


def check_embeddings(sdk: openai.OpenAI) -> None:
    reply = sdk.embeddings.create(model=EMBEDDER, input=["one", "two", "one"])
    one, two, again = (each.embedding for each in reply.data)
    assert cosine(one, again) > 0.999 > cosine(one, two)
    assert abs(sum(x * x for x in one) - 1) < 1e-3
    plain = sdk.embeddings.create(model=EMBEDDER, input="one", encoding_format="float")
    assert max(abs(a - b) for a, b in zip(plain.data[0].embedding, one, strict=True)) < 1e-3
    assert reply.usage.prompt_tokens > plain.usage.prompt_tokens > 0


def check_embeddings_of_a_chat_model_are_refused(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="chat"):
        sdk.embeddings.create(model=GUIDE, input="one")


# ── responses ──


def check_response(sdk: openai.OpenAI) -> None:
    reply = sdk.responses.create(model=GUIDE, input="What is edged?", max_output_tokens=60)
    assert "edged" in reply.output_text
    assert sdk.responses.retrieve(reply.id).output_text == reply.output_text
    more = sdk.responses.create(
        model=GUIDE, input="And where are its logs?", previous_response_id=reply.id
    )
    assert more.previous_response_id == reply.id
    assert more.usage.input_tokens > reply.usage.input_tokens
    [item] = sdk.responses.input_items.list(reply.id).data
    assert item.content[0].text == "What is edged?"
    sdk.responses.delete(reply.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(reply.id)


def check_response_stream(sdk: openai.OpenAI) -> None:
    with sdk.responses.stream(model=GUIDE, input="What is edged?", store=False) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text
    assert final.output_text == text


def check_response_tool(sdk: openai.OpenAI) -> None:
    tool = {"type": "function", "strict": True, **FORECAST}
    reply = sdk.responses.create(
        model=CALLER,
        input="hi",
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_output_tokens=200,
    )
    [call] = [item for item in reply.output if item.type == "function_call"]
    assert is_forecast(json.loads(call.arguments))
    after = sdk.responses.create(
        model=CALLER,
        previous_response_id=reply.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        tools=[tool],
        tool_choice="none",
        max_output_tokens=8,
    )
    assert after.output_text


def check_parsed_response(sdk: openai.OpenAI) -> None:
    reply = sdk.responses.parse(
        model=CALLER, input="hi", text_format=Forecast, max_output_tokens=200
    )
    assert isinstance(reply.output_parsed, Forecast)


# ── errors ──


def check_errors_are_the_sdks_own(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=GUIDE) as missing:
        sdk.chat.completions.create(model="nobody", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.chat.completions.create(model=GUIDE, messages=QUESTION, temperature=9)
    assert bad.value.param == "temperature"
    long = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(openai.BadRequestError) as too_long:
        sdk.chat.completions.create(model=GUIDE, messages=long)
    assert too_long.value.code == "context_length_exceeded"
    assert too_long.value.request_id


def check_timeout_of_the_client(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        sdk.with_options(timeout=TOO_SHORT_S).chat.completions.create(
            model=CALLER, messages=QUESTION, max_tokens=LONG, extra_body={"ignore_eos": True}
        )


def check_stream_may_be_left(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model=CALLER,
        messages=QUESTION,
        max_tokens=LONG,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    stream.close()


def check_headers(sdk: openai.OpenAI) -> None:
    raw = sdk.chat.completions.with_raw_response.create(
        model=GUIDE, messages=QUESTION, max_tokens=2, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.parse().choices
