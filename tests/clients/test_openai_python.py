from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

from tests.clients.conftest import CONTEXT, LIMIT_S, eventually

MODEL = "edge-guide"
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is edged?"}]
CHAT = "/v1/chat/completions"


def body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": QUESTION, "max_tokens": 40} | more


def events(response: httpx.Response) -> list[str]:
    found = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert found.pop() == "[DONE]"
    return found


def test_whole_answer_comes_with_usage(sdk: openai.OpenAI) -> None:
    reply = sdk.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=40)
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason in {"stop", "length"}
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert 0 < reply.usage.completion_tokens <= 40
    assert reply._request_id


def test_streamed_answer_is_the_whole_one(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=40)
    stream = sdk.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    content = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert content == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_text_completion_stops_after_16_tokens_by_default(sdk: openai.OpenAI) -> None:
    reply = sdk.completions.create(model=MODEL, prompt="edged", extra_body={"ignore_eos": True})
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 16
    assert reply.choices[0].finish_reason == "length"
    pieces = list(
        sdk.completions.create(
            model=MODEL, prompt="edged", extra_body={"ignore_eos": True}, stream=True
        )
    )
    assert "".join(piece.choices[0].text for piece in pieces) == reply.choices[0].text


def test_replies_and_chunks_are_strictly_of_the_published_types(raw: httpx.Client) -> None:
    reply = raw.post(CHAT, json=body())
    ChatCompletion.model_validate_json(reply.content, strict=True)
    stream = raw.post(CHAT, json=body(stream=True, stream_options={"include_usage": True}))
    found = [ChatCompletionChunk.model_validate_json(each, strict=True) for each in events(stream)]
    assert len(found) > 3
    text = {"model": MODEL, "prompt": "edged"}
    Completion.model_validate_json(raw.post("/v1/completions", json=text).content, strict=True)
    for each in events(raw.post("/v1/completions", json=text | {"stream": True})):
        # The published type forgets what OpenAI sends: null until the last chunk.
        reason = each.replace('"finish_reason":null', '"finish_reason":"stop"')
        Completion.model_validate_json(reason, strict=True)
    for model in raw.get("/v1/models").json()["data"]:
        Model.model_validate(model, strict=True)


def test_models_are_listed_and_found_under_every_name(sdk: openai.OpenAI) -> None:
    names = {model.id for model in sdk.models.list()}
    assert names == {MODEL, "gpt-4o-mini", "Qwen/Qwen3-8B"}
    assert sdk.models.retrieve("gpt-4o-mini").id == "gpt-4o-mini"
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("nobody")


def test_alias_answers_as_its_model(sdk: openai.OpenAI) -> None:
    reply = sdk.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, max_tokens=5)
    assert reply.model == MODEL


def test_unknown_model_is_not_found_and_names_what_exists(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL) as caught:
        sdk.chat.completions.create(model="nobody", messages=QUESTION)
    assert caught.value.code == "model_not_found"


def test_prompt_beyond_the_context_is_a_bad_request_with_both_figures(sdk: openai.OpenAI) -> None:
    long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "word " * 3 * CONTEXT}]
    with pytest.raises(openai.BadRequestError, match=str(CONTEXT)) as caught:
        sdk.chat.completions.create(model=MODEL, messages=long)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"n": 0}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ],
)
def test_parameter_that_cannot_be_honoured_is_a_bad_request(
    sdk: openai.OpenAI, more: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model=MODEL, messages=QUESTION, extra_body=more)
    assert caught.value.param == param


def test_stop_string_ends_the_answer_and_is_not_in_it(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=40)
    text = whole.choices[0].message.content
    assert text
    stop = text.split()[2]
    cut = sdk.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=40, stop=stop)
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_same_seed_gives_the_same_text(sdk: openai.OpenAI) -> None:
    def once(seed: int) -> str:
        reply = sdk.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=30, seed=seed, temperature=1.5
        )
        return reply.choices[0].message.content or ""

    assert once(7) == once(7)
    assert len({once(seed) for seed in range(8)}) > 1


def test_client_that_leaves_frees_its_sequence(sdk: openai.OpenAI, raw: httpx.Client) -> None:
    stream = sdk.chat.completions.create(
        model=MODEL, messages=QUESTION, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    assert eventually(lambda: raw.get("/status").json()["models"][0]["open"] == 0)


def test_eight_streams_at_once_all_answer_to_their_end(sdk: openai.OpenAI) -> None:
    def ask(question: str) -> str | None:
        stream = sdk.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": question}],
            max_tokens=30,
            stream=True,
        )
        *pieces, last = stream
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces)
        return last.choices[0].finish_reason

    questions = ["What is edged?", "How do I add a model?", "Where are the logs?", "Hello"] * 2
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, questions)) <= {"stop", "length"}


async def test_async_client_streams(daemon: str) -> None:
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(
        base_url=f"{daemon}/v1", api_key="none", timeout=LIMIT_S, http_client=http
    ) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=10, stream=True
        )
        content = [c.choices[0].delta.content or "" async for c in stream]
    assert "".join(content)
