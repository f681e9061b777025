from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from edged.protocol import Prompt, Text, Tokens
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
        (["a", "b"], "unsupported_parameter"),
        ([[1], [2]], "unsupported_parameter"),
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
    [("best_of", 2), ("echo", True), ("suffix", "x"), ("logprobs", 0), ("n", 2)],
)
async def test_parameter_that_is_not_honoured_is_refused_by_name(
    http: httpx.AsyncClient, name: str, value: Any
) -> None:
    response = await http.post(PATH, json=asks(**{name: value}))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, name)
    assert error["code"] == "unsupported_parameter"
