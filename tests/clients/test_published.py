"""The recorder and the validation see what is wrong; else the foreign suites would show nothing."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.clients.conftest import eventually
from tests.clients.published import problems
from tests.clients.recorder import Exchange, Recorder

CHAT = "/v1/chat/completions"
ASKED = {"model": "edge-guide", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def whole(body: Any, path: str = CHAT, status: int = 200) -> list[str]:
    content = json.dumps(body).encode()
    return problems(
        Exchange(
            "POST", path, status=status, content_type="application/json", body=content, whole=True
        )
    )


@pytest.fixture
def reply(raw: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = raw.post(CHAT, json=ASKED).json()
    assert whole(found) == []
    return found


def test_what_is_missing_mistyped_or_unpublished_is_seen(reply: dict[str, Any]) -> None:
    assert "unpublished" in whole(reply | {"mine": 1})[0]
    assert whole(reply | {"created": "now"})
    assert whole({k: v for k, v in reply.items() if k != "id"})
    choice = reply["choices"][0]
    assert whole(reply | {"choices": [choice | {"finish_reason": "done"}]})
    assert whole(reply | {"choices": [{k: v for k, v in choice.items() if k != "logprobs"}]})
    message = choice["message"] | {"thoughts": "hm"}
    assert whole(reply | {"choices": [choice | {"message": message}]})


def test_errors_of_another_shape_are_seen() -> None:
    error = {"message": "no", "type": "invalid_request_error", "param": None, "code": "bad"}
    assert whole({"error": error}, status=400) == []
    assert whole({"error": error | {"code": 400}}, status=400)
    assert whole({"error": error | {"code": "400"}}, status=400)
    assert whole({"detail": "no"}, status=400)
    assert whole({"error": error}, "/v1/messages", status=400)
    theirs = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
    assert whole(theirs, "/v1/messages", status=400) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"data: [DONE]\n\n", b""),
        (b"data: {", b"event: chunk\ndata: {"),
        (b"data: {", b"retry: 3\ndata: {"),
        (b'"delta":', b'"message":'),
        (b'"chat.completion.chunk"', b'"chunk"'),
        (
            b'"delta":{',
            b'"delta":{"tool_calls":[{"index":0,"id":"a"},{"index":0}],',
        ),
    ],
    ids=range(6),
)
def test_streams_are_read_to_the_last_line(raw: httpx.Client, old: bytes, new: bytes) -> None:
    body = raw.post(CHAT, json=ASKED | {"stream": True}).content
    exchange = Exchange("POST", CHAT, status=200, content_type="text/event-stream", whole=True)
    exchange.body = body
    assert problems(exchange) == []
    assert old in body
    exchange.body = body.replace(old, new)
    assert problems(exchange)


def test_recorder_forwards_and_keeps_every_exchange(daemon: str) -> None:
    with Recorder(daemon) as recorder:
        with httpx.Client(base_url=recorder.url, trust_env=False) as client:
            listed = client.get("/v1/models")
            bad = client.post(CHAT, json=ASKED | {"temperature": 9})
            streamed = client.post(CHAT, json=ASKED | {"stream": True})
        kept = recorder.exchanges()
    assert [(e.method, e.path, e.status, e.whole) for e in kept] == [
        ("GET", "/v1/models", 200, True),
        ("POST", CHAT, 400, True),
        ("POST", CHAT, 200, True),
    ]
    assert [e.body for e in kept] == [listed.content, bad.content, streamed.content]
    assert json.loads(kept[2].request)["stream"] is True
    assert [line for each in kept for line in problems(each)] == []


def test_client_that_hangs_up_on_the_recorder_hangs_up_on_the_daemon(daemon: str) -> None:
    asked = json.dumps(ASKED | {"max_tokens": 900, "stream": True, "ignore_eos": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(asked)}\r\n\r\n"

    def n_open() -> int:
        return int(httpx.get(f"{daemon}/status", trust_env=False).json()["models"][0]["open"])

    with Recorder(daemon) as recorder:
        address = urlsplit(recorder.url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(head.encode() + asked)
            assert client.recv(100)
            assert n_open() == 1
        assert eventually(lambda: n_open() == 0)
        [kept] = recorder.exchanges()
    assert (kept.status, kept.whole) == (200, False)
    assert problems(kept) == []
