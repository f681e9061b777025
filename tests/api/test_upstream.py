"""A model with an upstream, against a second real server that notes what it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from edged.config import Model
from tests.api.conftest import PlayedBox, eventually, plan_of, served

CHAT = "/v1/chat/completions"
ASKS = {"model": "large", "messages": [{"role": "user", "content": "hi"}], "odd": [1, {"x": None}]}


class Upstream:
    """An ASGI application that answers with given bytes and remembers requests."""

    def __init__(self) -> None:
        self.status = 200
        self.headers = [(b"content-type", b"application/json"), (b"retry-after", b"9")]
        self.pieces = [b'{"a": ', b" 1}"]
        self.asked: list[tuple[str, Any]] = []
        self.hold = False
        self.left = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        self.asked.append((scope["path"], msgspec.json.decode(body)))
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        await send(start)
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if self.hold:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left.set()
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.fixture
async def upstream(box: PlayedBox) -> AsyncIterator[Upstream]:
    app = Upstream()
    async with served(app) as port:
        url = f"http://127.0.0.1:{port}/v1"
        box.plan = plan_of(Model("big", upstream=url, aliases=("large",)))
        yield app


async def test_body_and_answer_pass_untouched_but_for_the_name(
    upstream: Upstream, http: httpx.AsyncClient
) -> None:
    response = await http.post(CHAT, json=ASKS)
    assert (response.status_code, response.content) == (200, b'{"a":  1}')
    assert response.headers["content-type"] == "application/json"
    assert upstream.asked == [("/v1/chat/completions", ASKS | {"model": "big"})]
    await http.post("/v1/completions", json={"model": "big", "prompt": ["a", "b"]})
    assert upstream.asked[1] == ("/v1/completions", {"model": "big", "prompt": ["a", "b"]})


async def test_error_of_the_upstream_is_the_answer(
    upstream: Upstream, http: httpx.AsyncClient
) -> None:
    upstream.status = 429
    upstream.pieces = [b'{"error": {"message": "slow down"}}']
    response = await http.post(CHAT, json=ASKS)
    assert response.status_code == 429
    assert response.json() == {"error": {"message": "slow down"}}
    assert response.headers["retry-after"] == "9"


async def test_stream_flows_and_a_client_that_leaves_closes_it(
    upstream: Upstream, http: httpx.AsyncClient
) -> None:
    upstream.headers = [(b"content-type", b"text/event-stream")]
    upstream.pieces = [b"data: {}\n\n"]
    upstream.hold = True
    async with http.stream("POST", CHAT, json=ASKS) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert await anext(response.aiter_bytes()) == b"data: {}\n\n"
    await eventually(upstream.left.is_set)


async def test_upstream_that_is_not_there_is_503(box: PlayedBox, http: httpx.AsyncClient) -> None:
    box.plan = plan_of(Model("big", upstream="http://127.0.0.1:9/v1"))
    response = await http.post(CHAT, json=ASKS | {"model": "big"})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (503, "unavailable")
    assert "big" in error["message"]
    assert response.headers["retry-after"]
