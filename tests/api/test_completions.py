from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import msgspec
import pytest

from edged.protocol import (
    Chosen,
    Delta,
    Event,
    Finish,
    Generate,
    Likelihood,
    Prompt,
    Started,
    Text,
    Tokens,
    Usage,
)
from tests.api.conftest import PlayedBox

PATH = "/v1/completions"


def asks(**more: Any) -> dict[str, Any]:
    return {"model": "guide", "prompt": "once"} | more


async def test_whole_reply_has_every_field(http: httpx.AsyncClient, box: PlayedBox) -> None:
    reply = (await http.post(PATH, json=asks())).json()
    assert reply["object"] == "text_completion"
    assert reply["id"].startswith("cmpl-")
    assert reply["choices"] == [
        {
            "text": "hmHello, wörld\n\n\u2028\x00",
            "index": 0,
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert reply["usage"]["total_tokens"] == 11
    assert box.asked[0][1].max_tokens == 16


async def test_stream_ends_with_reason_usage_and_done(http: httpx.AsyncClient) -> None:
    body = asks(stream=True, stream_options={"include_usage": True})
    response = await http.post(PATH, json=body)
    *lines, done = response.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    found = [msgspec.json.decode(line.removeprefix("data: ")) for line in lines]
    text = "".join(chunk["choices"][0]["text"] for chunk in found[:-1])
    assert text == "hmHello, wörld\n\n\u2028\x00"
    assert found[-2]["choices"][0]["finish_reason"] == "stop"
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("once", Text("once")),
        (["once"], Text("once")),
        ([1, 2, 3], Tokens([1, 2, 3])),
        ([[1, 2]], Tokens([1, 2])),
    ],
)
async def test_prompt_has_four_shapes(
    http: httpx.AsyncClient, box: PlayedBox, prompt: Any, wanted: Prompt
) -> None:
    response = await http.post(PATH, json=asks(prompt=prompt, max_tokens=3))
    assert response.status_code == 200
    assert box.asked[0][1].prompt == wanted
    assert box.asked[0][1].max_tokens == 3


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        (["a", ""], "invalid_value"),
        (["a"] * 129, "invalid_value"),
        ("", "invalid_value"),
        ([], "invalid_value"),
        ([[]], "invalid_value"),
        ([-1], "invalid_value"),
        ([2**31], "invalid_value"),
        ([True], "invalid_value"),
        ([1, "a"], "invalid_value"),
        ([1] * 8193, "context_length_exceeded"),
        ([None], "invalid_value"),
        ([[["a"]]], "invalid_value"),
        (None, "invalid_value"),
        (7, "invalid_value"),
        ({}, "invalid_value"),
    ],
    ids=range(15),
)
async def test_other_prompts_are_refused(http: httpx.AsyncClient, prompt: Any, code: str) -> None:
    response = await http.post(PATH, json=asks(prompt=prompt))
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "prompt", code)


@pytest.mark.parametrize(
    ("name", "value"),
    [("best_of", 2), ("tools", [{}]), ("messages", [{}]), ("reasoning_effort", "low")],
)
async def test_parameter_that_is_not_honoured_is_refused_by_name(
    http: httpx.AsyncClient, name: str, value: Any
) -> None:
    response = await http.post(PATH, json=asks(**{name: value}))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, name)
    assert error["code"] == "unsupported_parameter"


async def test_several_prompts_and_answers_are_choices_in_order(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        assert isinstance(request.prompt, Text)
        yield Started(request.id, 3)
        yield Delta(request.id, content=f"{request.prompt.text}{request.sampling.seed}")
        yield Finish(request.id, "stop", Usage(3, 2, cached_tokens=1))

    box.scripts["guide"] = script
    body = asks(prompt=["a", "b"], n=2, seed=1)
    reply = (await http.post(PATH, json=body)).json()
    assert [c["text"] for c in reply["choices"]] == ["a1", "a2", "b1", "b2"]
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2, 3]
    assert reply["usage"]["prompt_tokens"] == 6  # each prompt once
    assert reply["usage"]["completion_tokens"] == 8
    streamed = (await http.post(PATH, json=body | {"stream": True})).text
    texts = ["", "", "", ""]
    for event in streamed.strip().split("\n\n")[:-1]:
        for choice in msgspec.json.decode(event.removeprefix("data: "))["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["a1", "a2", "b1", "b2"]


async def test_echo_suffix_and_logprobs_reach_the_engine(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    await http.post(PATH, json=asks(echo=True))
    await http.post(PATH, json=asks(suffix="end"))
    await http.post(PATH, json=asks(logprobs=3))
    echo, suffix, logprobs = (request for _, request in box.asked)
    assert echo.echo
    assert suffix.prompt == Text("once", "end")
    assert logprobs.logprobs == 3


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"echo": True, "suffix": "x"}, "echo"),
        ({"suffix": "x", "prompt": [1]}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt": ["a"] * 100, "n": 2}, "n"),
    ],
)
async def test_what_contradicts_itself_is_a_400(
    http: httpx.AsyncClient, more: dict[str, Any], param: str
) -> None:
    response = await http.post(PATH, json=asks(**more))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_logprobs_count_offsets(http: httpx.AsyncClient, box: PlayedBox) -> None:
    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, 3)
        first, second = Chosen(1, b"ab", -0.5, [Likelihood(2, b"x", -1.0)]), Chosen(3, b"c", -0.25)
        yield Delta(request.id, content="abc", logprobs=[first, second], n_tokens=2)
        yield Delta(request.id, content="d", logprobs=[Chosen(4, b"d", -0.125)])
        yield Finish(request.id, "stop", Usage(3, 3))

    box.scripts["guide"] = script
    [choice] = (await http.post(PATH, json=asks(logprobs=1))).json()["choices"]
    assert choice["logprobs"] == {
        "tokens": ["ab", "c", "d"],
        "token_logprobs": [-0.5, -0.25, -0.125],
        "top_logprobs": [{"x": -1.0}, {}, {}],
        "text_offset": [0, 2, 3],
    }
    streamed = (await http.post(PATH, json=asks(logprobs=1, stream=True))).text
    offsets = []
    for event in streamed.strip().split("\n\n")[:-1]:
        for choice in msgspec.json.decode(event.removeprefix("data: "))["choices"]:
            offsets += (choice["logprobs"] or {"text_offset": []})["text_offset"]
    assert offsets == [0, 2, 3]
