from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from edged.api import body
from edged.config import Server
from tests.api.conftest import PlayedBox, eventually, plan_of

CHAT = "/v1/chat/completions"
HELLO = b'{"model":"guide","messages":[{"role":"user","content":"hi"}]}'
JSON = {"content-type": "application/json"}


def assert_error(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["message"]
    assert response.headers["x-request-id"]


async def test_unknown_path_is_404_in_shape(http: httpx.AsyncClient) -> None:
    for path in ("/", "/v1", "/v2/chat", "/schema", "/v1/chat/completions/more", "/%00"):
        assert_error(await http.get(path), 404, "unknown_path")
    assert_error(await http.options("/nothing"), 404, "unknown_path")


async def test_wrong_method_is_405_with_allow(http: httpx.AsyncClient) -> None:
    response = await http.get(CHAT)
    assert_error(response, 405, "method_not_allowed")
    assert "POST" in response.headers["allow"]
    response = await http.request("DELETE", "/v1/models")
    assert_error(response, 405, "method_not_allowed")
    assert {"GET", "HEAD"} <= set(response.headers["allow"].replace(" ", "").split(","))


async def test_trailing_slash_head_and_options_behave(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/models/")).status_code == 200
    assert (await http.post(CHAT + "/", content=HELLO, headers=JSON)).status_code == 200
    for path in ("/health", "/ready", "/status", "/metrics", "/v1/models", "/v1/models/guide"):
        response = await http.head(path)
        assert (response.status_code, response.content) == (200, b"")
    response = await http.options(CHAT)
    assert response.status_code == 204
    assert "POST" in response.headers["allow"]
    response = await http.head("/nothing")
    assert (response.status_code, response.content) == (404, b"")


async def test_request_id_is_echoed_if_sane_else_made(http: httpx.AsyncClient) -> None:
    response = await http.get("/health", headers={"x-request-id": "my-1.2:3_4"})
    assert response.headers["x-request-id"] == "my-1.2:3_4"
    for insane in ("a b", "", "x" * 200, "<x>"):
        response = await http.get("/health", headers={"x-request-id": insane})
        assert response.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b'{"model": }',
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b"",
        b"   ",
        b"[]",
        b'"x"',
        b"null",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"model":"guide","messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"seed": 1e999}',
        b'{"model":"guide","messages":[{"role":"user","content":"\\ud800"}]}',
    ],
    ids=range(14),
)
async def test_body_that_is_not_a_json_object_is_400(
    http: httpx.AsyncClient, content: bytes
) -> None:
    response = await http.post(CHAT, content=content, headers=JSON)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert len(response.text) < 1000


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "text/plain"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_body_of_another_kind_is_415(
    http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await http.post(CHAT, content=HELLO, headers=headers)
    assert_error(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/json; charset=utf-8"},
        {"content-type": "application/vnd.api+json"},
    ],
)
async def test_body_of_json_or_no_kind_is_read(
    http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await http.post(CHAT, content=HELLO, headers=headers)
    assert response.status_code == 200


async def test_body_above_the_limit_is_413_before_it_is_read(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    box.plan = plan_of(*box.plan.config.models.values(), server=Server(max_body_bytes=1000))
    response = await http.post(CHAT, content=b" " * 1001, headers=JSON)
    assert_error(response, 413, "body_too_large")

    sent = 0

    async def endless() -> Any:
        nonlocal sent
        for _ in range(100):
            sent += 100
            yield b" " * 100

    response = await http.post(CHAT, content=endless(), headers=JSON)
    assert_error(response, 413, "body_too_large")
    response = await http.post(CHAT, content=HELLO, headers=JSON)
    assert response.status_code == 200


async def test_body_that_stalls_is_408(
    port: int, box: PlayedBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "_IDLE_LIMIT_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    writer.write(head)
    async with asyncio.timeout(60):
        answer = await reader.read()  # to the end: the connection closes
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"client_too_slow" in answer
    writer.close()
    assert box.asked == []


async def test_client_that_leaves_during_its_body_leaves_nothing(
    port: int, box: PlayedBox, http: httpx.AsyncClient
) -> None:
    with capture_logs() as logs:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
            )
            await asyncio.sleep(0)
        await eventually(lambda: any(line["event"] == "request.done" for line in logs))
    assert [line["error"] for line in logs if "error" in line] == ["client_gone"]
    assert box.asked == []
    assert (await http.get("/health")).status_code == 200


async def test_client_outside_the_allowed_networks_is_403(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    box.plan = plan_of(server=Server(allow=("10.0.0.0/8", "::1")))
    assert_error(await http.get("/health"), 403, "network_not_allowed")
    box.plan = plan_of(server=Server(allow=("127.0.0.0/8",)))
    assert (await http.get("/health")).status_code == 200


async def test_request_has_one_line_of_log_without_its_prompt(http: httpx.AsyncClient) -> None:
    asked = msgspec.json.decode(HELLO) | {"strange": 1, "odd": 2}
    asked["messages"][0]["content"] = "my secret"
    with capture_logs() as logs:
        await http.post(CHAT, json=asked, headers={"x-request-id": "one"})
        await asyncio.sleep(0)
    [line] = [line for line in logs if line["event"] == "request.done"]
    wanted = {
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "model": "guide",
        "stream": False,
        "prompt_tokens": 7,
        "completion_tokens": 4,
        "cached": 3,
        "finish": "stop",
        "client": "127.0.0.1",
        "request_id": "one",
        "ignored_fields": ["strange", "odd"],
    }
    assert wanted.items() <= line.items()
    assert line["ms"] >= line["ttft_ms"] >= 0
    assert "secret" not in str(logs)
    assert "Hello" not in str(logs)


async def test_unexpected_fault_is_a_500_without_internals_and_with_a_traceback(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    def broken() -> Any:
        raise RuntimeError("secret detail")

    box.status = broken  # type: ignore[method-assign]
    with capture_logs() as logs:
        response = await http.get("/status")
    assert_error(response, 500, "internal_error")
    assert "secret" not in response.text
    [line] = [line for line in logs if line["event"] == "request.failed"]
    assert str(line["exc_info"]) == "secret detail"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
names = st.sampled_from(
    [
        "model",
        "messages",
        "stream",
        "stream_options",
        "stop",
        "n",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "logit_bias",
        "tools",
        "response_format",
        "user",
        "metadata",
        "store",
        "chat_template_kwargs",
        "prompt",
        "echo",
    ]
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(fields=st.dictionaries(names, json_values), path=st.sampled_from([CHAT, "/v1/completions"]))
async def test_no_json_gets_a_5xx(
    http: httpx.AsyncClient, box: PlayedBox, fields: dict[str, Any], path: str
) -> None:
    good = {"model": "guide", "messages": [{"role": "user", "content": "x"}], "prompt": "x"}
    content = msgspec.json.encode(good | fields)
    response = await http.post(path, content=content, headers=JSON)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert box.open == 0
