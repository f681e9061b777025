"""Who may come in, over HTTP: networks, keys, their models and limits, browsers."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest
from structlog.testing import capture_logs

from edged import auth
from edged.auth import Key, Keyring
from edged.config import Server
from edged.limits import Guard
from tests.api.conftest import PlayedBox, eventually

CHAT = "/v1/chat/completions"
BODY = {"model": "guide", "messages": [{"role": "user", "content": "hi"}]}


def with_keys(box: PlayedBox, *keys: Key, **server: Any) -> None:
    settings = Server(**({"auth": "keys"} | server))
    config = msgspec.structs.replace(box.plan.config, server=settings)
    box.plan = msgspec.structs.replace(box.plan, config=config)
    box.access.replace(Keyring(keys))


def key(name: str = "one", **more: Any) -> Key:
    return Key(name=name, sha256=auth.digest(f"sk-{name}"), **more)


def bearer(name: str = "one") -> dict[str, str]:
    return {"authorization": f"Bearer sk-{name}"}


def code(response: httpx.Response) -> str:
    return str(response.json()["error"]["code"])


@pytest.fixture(autouse=True)
def quick_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "FIRST_S", 0.0)


async def test_key_opens_and_its_name_is_logged_never_itself(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    with_keys(box, key())
    for headers in (
        bearer(),
        {"authorization": "bearer  sk-one"},
        {"x-api-key": "sk-one"},
        {"api-key": "sk-one"},
    ):
        with capture_logs() as logs:
            assert (await http.post(CHAT, json=BODY, headers=headers)).status_code == 200
        line = next(each for each in logs if each["event"] == "request.done")
        assert line["key"] == "one"
        assert "sk-one" not in repr(logs)
    page = (await http.get("/metrics", headers=bearer())).text
    assert 'edged_key_requests_total{key="one",status="200"} 4.0' in page
    assert 'edged_key_tokens_total{key="one"} 44.0' in page
    assert "sk-one" not in page + (await http.get("/status", headers=bearer())).text


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("two"), {"authorization": "Basic sk-one"}, {"authorization": "Bearer"}],
)
async def test_without_a_right_key_nothing_is_told(
    box: PlayedBox, http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    with_keys(box, key())
    for path in (CHAT, "/v1/messages", "/tokenize"):
        response = await http.post(path, json=BODY, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["message"]
    for path in ("/status", "/metrics", "/v1/models", "/v1/responses/x", "/nothing"):
        assert (await http.get(path, headers=headers)).status_code == 401
    for path in ("/health", "/ready"):
        assert (await http.get(path, headers=headers)).status_code == 200
    assert box.asked == []


async def test_loopback_needs_no_key_unless_said(box: PlayedBox, http: httpx.AsyncClient) -> None:
    with_keys(box, key(rpm=1), auth="auto")
    for headers in ({}, {"authorization": "Bearer none"}):
        assert (await http.post(CHAT, json=BODY, headers=headers)).status_code == 200
    assert (await http.post(CHAT, json=BODY, headers=bearer())).status_code == 200
    limited = await http.post(CHAT, json=BODY, headers=bearer())
    assert (limited.status_code, code(limited)) == (429, "rate_limit_exceeded")


async def test_expired_key_and_foreign_network_are_refused(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    with_keys(box, key(expires=box.now_s + 1), key("two", networks=("10.0.0.0/8",)))
    assert (await http.get("/v1/models", headers=bearer())).status_code == 200
    box.now_s += 1
    response = await http.get("/v1/models", headers=bearer())
    assert (response.status_code, code(response)) == (401, "invalid_api_key")
    assert "expired on 2027-01-15" in response.text
    response = await http.get("/v1/models", headers=bearer("two"))
    assert (response.status_code, code(response)) == (403, "network_not_allowed")


async def test_key_sees_and_uses_its_models_only(box: PlayedBox, http: httpx.AsyncClient) -> None:
    with_keys(box, key(models=("guide",)), key("alias", models=("other/alias",)))
    listed = (await http.get("/v1/models", headers=bearer())).json()["data"]
    assert [each["id"] for each in listed] == ["guide", "gpt-4o-mini"]
    assert (await http.post(CHAT, json=BODY, headers=bearer())).status_code == 200
    other = BODY | {"model": "Qwen/Qwen3-8B"}
    for response in (
        await http.post(CHAT, json=other, headers=bearer()),
        await http.get("/v1/models/Qwen/Qwen3-8B", headers=bearer()),
        await http.post(CHAT, json=other, headers=bearer("alias")),
    ):
        assert (response.status_code, code(response)) == (403, "model_not_allowed")
    by_alias = BODY | {"model": "other/alias"}
    assert (await http.post(CHAT, json=by_alias, headers=bearer("alias"))).status_code == 200


async def test_limits_are_kept_and_told(box: PlayedBox, http: httpx.AsyncClient) -> None:
    with_keys(box, key(rpm=2, tpm=100_000))
    first = await http.post(CHAT, json=BODY, headers=bearer())
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-limit-tokens"] == "100000"
    for _ in range(5):
        assert (await http.get("/v1/models", headers=bearer())).status_code == 200
    await http.post(CHAT, json=BODY, headers=bearer())
    response = await http.post(CHAT, json=BODY, headers=bearer())
    assert response.status_code == 429
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert response.headers["x-ratelimit-remaining-requests"] == "0"
    # seven of the prompt and four of the answer, twice; some have come back since
    used = 100_000 - int(response.headers["x-ratelimit-remaining-tokens"])
    assert 0 <= used <= 22


async def test_parallel_counts_streams_until_they_end(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    with_keys(box, key(parallel=1))
    go_on = asyncio.Event()
    play = box.scripts["guide"]

    async def waits(request: Any) -> Any:
        async for event in play(request):
            yield event
            await go_on.wait()

    box.scripts["guide"] = waits
    streamed = BODY | {"stream": True}
    async with http.stream("POST", CHAT, json=streamed, headers=bearer()) as response:
        assert response.status_code == 200
        second = await http.post(CHAT, json=BODY, headers=bearer())
        assert (second.status_code, code(second)) == (429, "rate_limit_exceeded")
        go_on.set()
        await response.aread()
    assert (await http.post(CHAT, json=BODY, headers=bearer())).status_code == 200


async def test_many_wrong_keys_are_refused_while_the_right_one_comes_in(
    box: PlayedBox, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_keys(box, key())
    monkeypatch.setattr(Guard, "FIRST_S", 8.0)
    monkeypatch.setattr(Guard, "MOST_S", 8.0)
    waiting = [
        asyncio.create_task(http.get("/v1/models", headers=bearer("wrong")))
        for _ in range(Guard.MOST_WAITING)
    ]
    waits = box.access.guard._waiting
    await eventually(lambda: sum(waits.values()) == Guard.MOST_WAITING)
    response = await http.get("/v1/models", headers=bearer("wrong"))
    assert (response.status_code, code(response)) == (429, "rate_limit_exceeded")
    assert (await http.get("/v1/models", headers=bearer())).status_code == 200
    page = (await http.get("/metrics", headers=bearer())).text
    assert f'edged_wrong_keys_total{{reason="unknown"}} {Guard.MOST_WAITING + 1}.0' in page
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_owner_of_stored_responses_is_the_key(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    with_keys(box, key(), key("two"))
    body = {"model": "guide", "input": "hi"}
    made = (await http.post("/v1/responses", json=body, headers=bearer())).json()
    path = f"/v1/responses/{made['id']}"
    assert (await http.get(path, headers=bearer())).status_code == 200
    assert (await http.get(path, headers=bearer("two"))).status_code == 404


# ── browsers ──


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("localhost", 200),
        ("mybox:8000", 200),
        ("mybox.local:8000", 200),
        ("ai.example.org", 200),
        ("evil.example.com:8000", 403),
        ("127.0.0.1.evil.example.com", 403),
        ("local.evil.com", 403),
    ],
)
async def test_host_must_be_a_name_of_this_network(
    box: PlayedBox, http: httpx.AsyncClient, host: str, status: int
) -> None:
    with_keys(box, key(), auth="auto", hosts=("ai.example.org",))
    response = await http.get("/v1/models", headers={"host": host})
    assert response.status_code == status
    assert status == 200 or code(response) == "host_not_allowed"
    assert (await http.get("/v1/models", headers={"host": host} | bearer())).status_code == 200
    assert (await http.get("/health", headers={"host": host})).status_code == 200


async def test_page_of_another_site_may_not_ask_without_a_key(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    with_keys(box, key(), auth="auto", cors=("https://app.example.org",))
    for origin in ("https://evil.example.com", "null", "http://127.0.0.1:1"):
        response = await http.post(CHAT, json=BODY, headers={"origin": origin})
        assert (response.status_code, code(response)) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in response.headers
        keyed = await http.post(CHAT, json=BODY, headers={"origin": origin} | bearer())
        assert keyed.status_code == 200
        assert "access-control-allow-origin" not in keyed.headers
    own = f"http://{http.base_url.host}:{http.base_url.port}"
    assert (await http.post(CHAT, json=BODY, headers={"origin": own})).status_code == 200
    response = await http.post(CHAT, json=BODY, headers={"origin": "https://app.example.org"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://app.example.org"


async def test_preflight_is_answered_for_allowed_origins_only(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    with_keys(box, key(), cors=("https://app.example.org",))
    asks = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-stainless-os",
    }
    response = await http.options(CHAT, headers=asks | {"origin": "https://app.example.org"})
    assert response.status_code == 204
    assert response.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "POST" in response.headers["access-control-allow-methods"]
    response = await http.options(CHAT, headers=asks | {"origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in response.headers


async def test_ca_is_given_to_everybody_where_there_is_one(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    with_keys(box, key())
    assert (await http.get("/ca.crt")).status_code == 404
    box.ca_pem = b"-----BEGIN"
    response = await http.get("/ca.crt")
    assert (response.status_code, response.content) == (200, b"-----BEGIN")
