"""Texts and tokens of edge-guide, against what its real requests use."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

CHAT = "/v1/chat/completions"
MODEL = "edge-guide"
QUESTION = {"role": "user", "content": "What is edged?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def tokens_of(raw: httpx.Client, content: str, **more: Any) -> Any:
    response = raw.post("/tokenize", json={"content": content} | more)
    assert response.status_code == 200, response.text
    return response.json()["tokens"]


@pytest.mark.parametrize("text", ["", "edged", "Hällo, wörld 🙂\n\n日本", "a" * 3000, "\x00\u2028"])
def test_text_is_its_tokens_and_back(raw: httpx.Client, text: str) -> None:
    tokens = tokens_of(raw, text)
    back = raw.post("/v1/detokenize", json={"tokens": tokens})
    assert back.json() == {"content": text}
    pieces = tokens_of(raw, text, with_pieces=True)
    assert [each["id"] for each in pieces] == tokens
    spelt = [
        each["piece"].encode() if isinstance(each["piece"], str) else bytes(each["piece"])
        for each in pieces
    ]
    assert b"".join(spelt).decode() == text


def test_control_tokens_are_parsed_unless_told_otherwise(raw: httpx.Client) -> None:
    assert len(tokens_of(raw, "<|im_end|>")) == 1
    assert len(tokens_of(raw, "<|im_end|>", parse_special=False)) > 1


def test_token_outside_the_vocabulary_is_refused(raw: httpx.Client) -> None:
    response = raw.post("/detokenize", json={"tokens": [999_999]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tokens")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"messages": [{"role": "system", "content": "Be brief."}, QUESTION]},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": "none"},
        {"reasoning_effort": "low"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {
            "messages": [QUESTION, {"role": "assistant", "content": "edged is"}],
            "continue_final_message": True,
        },
    ],
)
def test_count_and_prompt_are_what_the_request_uses(
    raw: httpx.Client, more: dict[str, Any]
) -> None:
    asks = {"model": MODEL, "messages": [QUESTION], "max_tokens": 3} | more
    used = raw.post(CHAT, json=asks).json()["usage"]["prompt_tokens"]
    counted = raw.post(f"{CHAT}/input_tokens", json=asks).json()
    assert counted == {"object": "response.input_tokens", "input_tokens": used}
    prompt = raw.post("/apply-template", json=asks).json()["prompt"]
    assert len(tokens_of(raw, prompt)) == used


def test_prompt_may_end_before_the_answer(raw: httpx.Client) -> None:
    asks: dict[str, Any] = {"messages": [QUESTION]}
    whole = raw.post("/apply-template", json=asks).json()["prompt"]
    asks["add_generation_prompt"] = False
    turns = raw.post("/apply-template", json=asks).json()["prompt"]
    assert "What is edged?" in turns
    assert whole.startswith(turns)
    assert len(turns) < len(whole)
