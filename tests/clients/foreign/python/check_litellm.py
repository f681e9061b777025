"""litellm, as people point it at a server that speaks OpenAI's API."""

from __future__ import annotations

import json
from typing import Any, Literal

import litellm
import pytest
from pydantic import BaseModel

from appliance import (
    CALLER,
    CLOCK,
    EMBEDDER,
    GUIDE,
    KEY,
    LIMIT_S,
    LONG,
    QUESTION,
    RERANKER,
    TOO_SHORT_S,
    TOOL,
    URL,
    V1,
    is_forecast,
)

litellm.telemetry = False


class Forecast(BaseModel):
    city: Literal["Berlin", "Paris"]
    sunny: bool


def asked(model: str, **more: Any) -> dict[str, Any]:
    return {
        "model": f"openai/{model}",
        "messages": QUESTION,
        "api_base": V1,
        "api_key": KEY,
        "timeout": LIMIT_S,
        "max_retries": 0,
    } | more


def check_answer_has_words_and_usage() -> None:
    reply = litellm.completion(**asked(GUIDE, max_tokens=60))
    assert "edged" in reply.choices[0].message.content
    assert reply.usage.completion_tokens > 0


def check_stream_with_usage() -> None:
    chunks = list(
        litellm.completion(
            **asked(GUIDE, max_tokens=20, stream=True, stream_options={"include_usage": True})
        )
    )
    whole = litellm.completion(**asked(GUIDE, max_tokens=20))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert litellm.stream_chunk_builder(chunks).usage.completion_tokens > 0


async def check_async() -> None:
    reply = await litellm.acompletion(**asked(GUIDE, max_tokens=5))
    assert reply.choices[0].message.content


def check_tool_call_and_its_answer() -> None:
    tools = {"tools": [TOOL, CLOCK]}
    reply = litellm.completion(**asked(CALLER, tool_choice="required", max_tokens=200, **tools))
    message = reply.choices[0].message
    assert reply.choices[0].finish_reason == "tool_calls"
    results = []
    for call in message.tool_calls:
        arguments = json.loads(call.function.arguments)
        assert is_forecast(arguments) if call.function.name == "forecast" else arguments == {}
        results.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    messages = [*QUESTION, message.model_dump(), *results]
    after = litellm.completion(
        **asked(CALLER, messages=messages, tool_choice="none", max_tokens=8, **tools)
    )
    assert after.choices[0].message.content


def check_streamed_tool_call() -> None:
    stream = litellm.completion(
        **asked(
            CALLER,
            tools=[TOOL],
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=200,
            stream=True,
        )
    )
    whole = litellm.stream_chunk_builder(list(stream))
    [call] = whole.choices[0].message.tool_calls
    assert is_forecast(json.loads(call.function.arguments))


def check_structured_output() -> None:
    reply = litellm.completion(**asked(CALLER, response_format=Forecast, max_tokens=200))
    Forecast.model_validate_json(reply.choices[0].message.content)


def check_text_completion() -> None:
    reply = litellm.text_completion(
        model=f"text-completion-openai/{GUIDE}",
        prompt="edged is",
        api_base=V1,
        api_key=KEY,
        max_tokens=5,
    )
    assert reply.choices[0].text


def check_embedding() -> None:
    reply = litellm.embedding(
        model=f"openai/{EMBEDDER}", input=["one", "two"], api_base=V1, api_key=KEY
    )
    assert len(reply.data) == 2
    assert len(reply.data[0]["embedding"]) > 1


def check_rerank() -> None:
    reply = litellm.rerank(
        model=f"jina_ai/{RERANKER}",
        query="weather",
        documents=["sunny", "the stock market", "rain"],
        top_n=2,
        api_base=f"{V1}/rerank",
        api_key=KEY,
    )
    assert len(reply.results) == 2
    assert reply.results[0]["relevance_score"] >= reply.results[1]["relevance_score"]


def check_responses() -> None:
    reply = litellm.responses(
        model=f"openai/{GUIDE}", input="What is edged?", api_base=V1, api_key=KEY
    )
    assert "edged" in reply.output[-1].content[0].text


def check_anthropic_dialect() -> None:
    reply = litellm.completion(
        model=f"anthropic/{GUIDE}", messages=QUESTION, api_base=URL, api_key=KEY, max_tokens=60
    )
    assert "edged" in reply.choices[0].message.content


def check_errors_are_mapped() -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**asked("nobody"))
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**asked(GUIDE, temperature=9))
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**asked(GUIDE, messages=[{"role": "user", "content": "word " * 3000}]))
    with pytest.raises(litellm.Timeout):
        litellm.completion(
            **asked(CALLER, max_tokens=LONG, timeout=TOO_SHORT_S, extra_body={"ignore_eos": True})
        )
