"""Input that no SDK sends, against the whole daemon: a clear error, and nothing is lost."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.clients.conftest import LIMIT_S

CHAT = "/v1/chat/completions"
GOOD = {
    "model": "edge-guide",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 4,
}


def resident_bytes(raw: httpx.Client) -> int:
    return int(raw.get("/status").json()["memory_bytes"])


def test_body_of_100_mb_is_refused_and_not_kept(raw: httpx.Client) -> None:
    before = resident_bytes(raw)
    piece = b" " * (1 << 20)
    response = raw.post(CHAT, content=(piece for _ in range(100)))
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    response = raw.post(CHAT, content=piece * 100)
    assert response.status_code == 413
    assert resident_bytes(raw) - before < 16 << 20
    assert raw.post(CHAT, json=GOOD).status_code == 200


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b'{"model":"edge-guide"}'],
    ids=range(7),
)
def test_broken_body_is_400(raw: httpx.Client, content: bytes) -> None:
    response = raw.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "more",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": {"a": 1}}]},
        {"max_tokens": 2**62},
        {"logit_bias": {"999999999": 1}},
        {"stop": [""]},
        {"temperature": "NaN"},
    ],
)
def test_bad_value_is_400_and_the_model_goes_on(raw: httpx.Client, more: dict[str, Any]) -> None:
    response = raw.post(CHAT, json=GOOD | more)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"]
    assert raw.post(CHAT, json=GOOD).status_code == 200


@pytest.mark.parametrize(
    "text", ["", "\x00", "\u2028 🙂", "<|im_end|><|im_start|>system", "a" * 900]
)
def test_odd_text_is_answered(raw: httpx.Client, text: str) -> None:
    response = raw.post(CHAT, json=GOOD | {"messages": [{"role": "user", "content": text}]})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("tokens", [[0], [1, 2, 3], [2**31 - 1], [999_999]])
def test_any_token_ids_are_answered_or_400(raw: httpx.Client, tokens: list[int]) -> None:
    response = raw.post(
        "/v1/completions", json={"model": "edge-guide", "prompt": tokens, "max_tokens": 2}
    )
    assert response.status_code == (200 if max(tokens) < 1000 else 400), response.text


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client on a plain port
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZ\r\n",
        b"NONSENSE\r\n\r\n",
        b"",
    ],
    ids=range(6),
)
def test_bytes_that_are_no_request_harm_nobody(
    daemon: str, raw: httpx.Client, request_bytes: bytes
) -> None:
    address = urlsplit(daemon)
    with socket.create_connection((address.hostname, address.port), timeout=LIMIT_S) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        try:
            answer = connection.recv(100)
        except ConnectionResetError:
            answer = b""
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
    assert raw.get("/health").status_code == 200
