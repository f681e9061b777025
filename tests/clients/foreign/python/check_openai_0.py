"""openai 0.28: the module-level API that old programs and notebooks still use."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from appliance import CALLER, EMBEDDER, GUIDE, KEY, LIMIT_S, LONG, QUESTION, TOO_SHORT_S, TOOL, V1
from appliance import is_forecast

openai.api_base = V1
openai.api_key = KEY


def check_models() -> None:
    assert GUIDE in {model.id for model in openai.Model.list().data}
    assert openai.Model.retrieve(GUIDE).id == GUIDE


def check_answer_with_the_base_as_an_argument() -> None:
    reply = openai.ChatCompletion.create(
        api_base=V1, api_key=KEY, model=GUIDE, messages=QUESTION, max_tokens=60
    )
    assert "edged" in reply.choices[0].message.content
    assert reply["usage"]["completion_tokens"] > 0


def check_stream() -> None:
    whole = openai.ChatCompletion.create(model=GUIDE, messages=QUESTION, max_tokens=20)
    chunks = list(
        openai.ChatCompletion.create(model=GUIDE, messages=QUESTION, max_tokens=20, stream=True)
    )
    text = "".join(chunk.choices[0].delta.get("content") or "" for chunk in chunks)
    assert text == whole.choices[0].message.content


def check_async() -> None:
    async def ask() -> str:
        reply = await openai.ChatCompletion.acreate(
            model=GUIDE, messages=QUESTION, max_tokens=5, request_timeout=LIMIT_S
        )
        stream = await openai.ChatCompletion.acreate(
            model=GUIDE, messages=QUESTION, max_tokens=5, stream=True
        )
        streamed = [chunk.choices[0].delta.get("content") or "" async for chunk in stream]
        assert "".join(streamed) == reply.choices[0].message.content
        return str(reply.choices[0].message.content)

    assert asyncio.run(ask())


def check_completions() -> None:
    reply = openai.Completion.create(model=GUIDE, prompt="edged is", max_tokens=5, logprobs=1)
    assert reply.choices[0].text
    pieces = openai.Completion.create(model=GUIDE, prompt="edged is", max_tokens=5, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == reply.choices[0].text


def check_tools_pass_as_they_are() -> None:
    reply = openai.ChatCompletion.create(
        model=CALLER,
        messages=QUESTION,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
    )
    [call] = reply.choices[0].message.tool_calls
    assert is_forecast(json.loads(call.function.arguments))


def check_embedding() -> None:
    reply = openai.Embedding.create(model=EMBEDDER, input=["one", "two"])
    assert len(reply.data) == 2
    assert len(reply.data[0].embedding) == len(reply.data[1].embedding) > 1


def check_errors_are_the_sdks_own() -> None:
    with pytest.raises(openai.error.InvalidRequestError) as missing:
        openai.ChatCompletion.create(model="nobody", messages=QUESTION)
    assert missing.value.http_status == 404
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.error.InvalidRequestError) as bad:
        openai.ChatCompletion.create(model=GUIDE, messages=QUESTION, temperature=9)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.error.Timeout):
        openai.ChatCompletion.create(
            model=CALLER,
            messages=QUESTION,
            max_tokens=LONG,
            ignore_eos=True,
            request_timeout=TOO_SHORT_S,
        )
