"""Texts and tokens without a generation: llama-server's shapes, and what the worker is asked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx
import pytest

from edged import errors
from edged.config import Model, Source
from edged.protocol import (
    Detokenize,
    Detokenized,
    Event,
    Generate,
    Messages,
    Render,
    Rendered,
    Tokenize,
    Tokenized,
)
from tests.api.conftest import PlayedBox, failing, plan_of, served
from tests.api.test_upstream import Upstream

CHAT = "/v1/chat/completions"
INPUT_TOKENS = f"{CHAT}/input_tokens"
HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BOTH = pytest.mark.parametrize("prefix", ["", "/v1"])


async def vocabulary(request: Any) -> AsyncGenerator[Event, None]:
    """Answer as a worker that knows the tokens "a", half of "é", and its other half."""
    match request:
        case Tokenize():
            yield Tokenized(request.id, [1, 2, 3], [b"a", b"\xc3", b"\xa9"])
        case Detokenize():
            yield Detokenized(request.id, "aé")
        case Render():
            yield Rendered(request.id, "<hi>", 3)


@pytest.fixture(autouse=True)
def words(box: PlayedBox) -> None:
    box.scripts = dict.fromkeys(box.scripts, vocabulary)


def asked(box: PlayedBox) -> Any:
    return box.asked[-1][1]


@BOTH
async def test_tokenize(box: PlayedBox, http: httpx.AsyncClient, prefix: str) -> None:
    response = await http.post(f"{prefix}/tokenize", json={"model": "guide", "content": "aé"})
    assert (response.status_code, response.json()) == (200, {"tokens": [1, 2, 3]})
    assert asked(box) == Tokenize("aé", add_special=False, parse_special=True)
    more = {"add_special": True, "parse_special": False, "with_pieces": True}
    response = await http.post(
        f"{prefix}/tokenize", json={"model": "guide", "content": "aé"} | more
    )
    assert response.json() == {
        "tokens": [
            {"id": 1, "piece": "a"},
            {"id": 2, "piece": [0xC3]},
            {"id": 3, "piece": [0xA9]},
        ]
    }
    assert asked(box) == Tokenize("aé", add_special=True, parse_special=False)


@BOTH
async def test_detokenize(box: PlayedBox, http: httpx.AsyncClient, prefix: str) -> None:
    response = await http.post(
        f"{prefix}/detokenize", json={"model": "gpt-4o-mini", "tokens": [1, 2, 3]}
    )
    assert (response.status_code, response.json()) == (200, {"content": "aé"})
    assert box.asked == [("guide", Detokenize([1, 2, 3]))]


@BOTH
async def test_apply_template(box: PlayedBox, http: httpx.AsyncClient, prefix: str) -> None:
    asks = {"model": "guide", "messages": HI, "tools": [TOOL]}
    asks["chat_template_kwargs"] = {"mood": "good"}
    response = await http.post(f"{prefix}/apply-template", json=asks)
    assert (response.status_code, response.json()) == (200, {"prompt": "<hi>"})
    prompt = asked(box).prompt
    assert (prompt.messages, prompt.template_kwargs) == (HI, {"mood": "good"})
    assert [tool["function"]["name"] for tool in prompt.tools] == ["f"]
    await http.post(f"{prefix}/apply-template", json=asks | {"add_generation_prompt": False})
    assert asked(box).prompt.template_kwargs == {"mood": "good", "add_generation_prompt": False}
    turns = [*HI, {"role": "assistant", "content": "We"}]
    goes_on = {"messages": turns, "continue_final_message": True, "add_generation_prompt": False}
    await http.post(f"{prefix}/apply-template", json=asks | goes_on)
    assert asked(box).prompt.continue_last
    assert asked(box).prompt.template_kwargs == {"mood": "good"}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "required", "reasoning_effort": "low"},
        {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 3, "n": 2},
    ],
)
async def test_count_renders_what_the_request_would(
    box: PlayedBox, http: httpx.AsyncClient, more: dict[str, Any]
) -> None:
    asks = {"model": "guide", "messages": HI} | more
    response = await http.post(INPUT_TOKENS, json=asks)
    assert (response.status_code, response.json()) == (
        200,
        {"object": "response.input_tokens", "input_tokens": 3},
    )
    counted = asked(box)
    box.scripts["guide"] = failing(errors.QueueFull("no"))
    await http.post(CHAT, json=asks)
    assert isinstance(asked(box), Generate)
    assert counted == Render(asked(box).prompt)


async def test_tools_that_may_not_be_called_do_not_count(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    asks = {"model": "guide", "messages": HI, "tools": [TOOL], "tool_choice": "none"}
    assert (await http.post(INPUT_TOKENS, json=asks)).status_code == 200
    assert asked(box) == Render(Messages(messages=HI))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": "a"}),
        ("/detokenize", {"tokens": [1]}),
        ("/apply-template", {"messages": HI}),
    ],
)
async def test_only_model_of_a_box_need_not_be_named(
    box: PlayedBox, http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    response = await http.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    assert (await http.post(path, json=body | {"model": "nobody"})).status_code == 404
    box.plan = plan_of(Model("guide", Source("file", "/nowhere.gguf")))
    assert (await http.post(path, json=body)).status_code == 200
    assert (await http.post(path, json=body | {"model": "nobody"})).status_code == 404
    assert box.asked[0][0] == "guide"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": ["a", 1]}, "content"),
        ("/tokenize", {"content": "a", "with_pieces": 1}, "with_pieces"),
        ("/tokenize", {"content": "a", "prompt": "a"}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1]"),
        ("/detokenize", {"tokens": [2**31]}, "tokens[0]"),
        ("/apply-template", {"messages": []}, "messages"),
        ("/apply-template", {"messages": HI, "chat_template": "x"}, "chat_template"),
        (INPUT_TOKENS, {"messages": HI, "tools": [{"type": "x"}]}, "tools[0].type"),
    ],
)
async def test_bad_value_is_named(
    box: PlayedBox, http: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = await http.post(path, json={"model": "guide"} | body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert not box.asked


async def test_error_of_the_worker_is_the_answer(box: PlayedBox, http: httpx.AsyncClient) -> None:
    box.scripts["guide"] = failing(errors.InvalidRequest("no such token", param="tokens"))
    response = await http.post("/detokenize", json={"model": "guide", "tokens": [9]})
    assert (response.status_code, response.json()["error"]["message"]) == (400, "no such token")


@pytest.fixture
async def upstream(box: PlayedBox) -> AsyncIterator[Upstream]:
    app = Upstream()
    async with served(app) as port:
        box.plan = plan_of(Model("big", upstream=f"http://127.0.0.1:{port}/v1"))
        yield app


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("/tokenize", "/tokenize"),
        ("/v1/detokenize", "/detokenize"),
        ("/apply-template", "/apply-template"),
        (INPUT_TOKENS, INPUT_TOKENS),
        ("/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/v1/messages", "/v1/messages"),
    ],
)
async def test_upstream_gets_it_at_its_own_path(
    upstream: Upstream, http: httpx.AsyncClient, path: str, there: str
) -> None:
    response = await http.post(path, json={"model": "big", "odd": 1})
    assert (response.status_code, response.content) == (200, b'{"a":  1}')
    assert upstream.asked == [(there, {"model": "big", "odd": 1})]
