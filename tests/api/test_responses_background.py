"""The Responses API: responses that run without a client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from openai.types.responses import Response
from structlog.testing import capture_logs

from edged import errors
from edged.api.app import create_app
from edged.api.openai.responses import background
from edged.config import Model
from edged.protocol import (
    Event,
    Generate,
    Started,
)
from tests.api.conftest import PlayedBox, failing, plan_of, served
from tests.api.responses_support import (
    PATH,
    Gate,
    ask,
    asks,
    first_block,
    refused,
    strictly,
    told,
    types,
)


def client_of(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False)


async def until(http: httpx.AsyncClient, reply: dict[str, Any]) -> dict[str, Any]:
    """Poll a background response until it has ended."""
    async with asyncio.timeout(30):
        while reply["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.01)
            reply = strictly(Response, (await http.get(f"{PATH}/{reply['id']}")).text)
    return reply


async def test_background_response_is_polled(http: httpx.AsyncClient, box: PlayedBox) -> None:
    gate = Gate()
    box.scripts["guide"] = gate
    with capture_logs() as logs:
        reply = await ask(http, background=True)
        assert reply["status"] == "queued"
        assert reply["background"] is True
        assert reply["output"] == []
        await gate.reached.wait()
        path = f"{PATH}/{reply['id']}"
        now = strictly(Response, (await http.get(path)).text)
        assert now["status"] == "in_progress"
        assert now["output"][0]["content"][0]["text"] == "Once "
        error = await refused(http, previous_response_id=reply["id"])
        assert "queued" in error["message"]
        assert (await http.get(f"{path}/input_items")).json()["data"]
        gate.open.set()
        done = await until(http, now)
    assert done["status"] == "completed"
    assert done["output"][0]["content"][0]["text"] == "Once upon"
    assert (await ask(http, previous_response_id=done["id"]))["status"] == "completed"
    [line] = [log for log in logs if log["event"] == "response.done"]
    assert (line["response"], line["completion_tokens"]) == (done["id"], 2)
    assert (await http.post(f"{path}/cancel")).json() == done  # too late, and no harm


async def test_background_response_is_cancelled(http: httpx.AsyncClient, box: PlayedBox) -> None:
    gate = Gate()
    box.scripts["guide"] = gate
    reply = await ask(http, background=True)
    await gate.reached.wait()
    path = f"{PATH}/{reply['id']}"
    cancelled = strictly(Response, (await http.post(f"{path}/cancel")).text)
    assert cancelled["status"] == "cancelled"
    assert cancelled["output"][0]["status"] == "incomplete"
    assert gate.aborted
    assert box.open == 0
    assert (await http.get(path)).json() == cancelled
    foreground = await ask(http, model="Qwen/Qwen3-8B")
    response = await http.post(f"{PATH}/{foreground['id']}/cancel")
    assert response.status_code == 400
    assert "background" in response.json()["error"]["message"]


async def test_background_response_is_deleted_while_it_runs(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    gate = Gate()
    box.scripts["guide"] = gate
    reply = await ask(http, background=True)
    await gate.reached.wait()
    assert (await http.delete(f"{PATH}/{reply['id']}")).status_code == 200
    assert gate.aborted
    assert (await http.get(f"{PATH}/{reply['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.QueueFull("64 wait"), "rate_limit_exceeded"),
        (errors.ContextLengthExceeded("too long"), "invalid_prompt"),
        (errors.ModelFailed("broken"), "server_error"),
    ],
)
async def test_background_response_fails_with_its_reason(
    http: httpx.AsyncClient, box: PlayedBox, error: errors.EdgedError, code: str
) -> None:
    box.scripts["guide"] = failing(error)
    done = await until(http, await ask(http, background=True))
    assert done["status"] == "failed"
    assert done["error"] == {"code": code, "message": error.message}


async def test_background_fault_is_logged_and_not_told(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    async def faulty(request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, 5)
        raise ZeroDivisionError("a secret")

    box.scripts["guide"] = faulty
    with capture_logs() as logs:
        done = await until(http, await ask(http, background=True))
    assert done["status"] == "failed"
    assert "secret" not in json.dumps(done)
    assert any(log["event"] == "request.failed" for log in logs)


async def test_background_responses_have_a_limit(http: httpx.AsyncClient, box: PlayedBox) -> None:
    gate = Gate()
    model = Model("guide", parallel=1, queue=2)
    box.plan = plan_of(model)
    box.scripts["guide"] = gate
    at_once = [http.post(PATH, json=asks(background=True)) for _ in range(5)]
    replies = [each for each in await asyncio.gather(*at_once) if each.status_code != 429]
    running = [each.json() for each in replies]
    assert len(running) == 2
    several = [http.post(PATH, json=asks(background=True)) for _ in range(5)]
    for response in await asyncio.gather(*several):
        assert response.status_code == 429
    assert response.headers["retry-after"]
    gate.open.set()
    for each in running:
        assert (await until(http, each))["status"] == "completed"
    assert (await ask(http, background=True))["status"] == "queued"


async def test_background_stream_goes_on_without_its_client(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    gate = Gate()
    box.scripts["guide"] = gate
    async with http.stream("POST", PATH, json=asks(stream=True, background=True)) as response:
        created = told(await first_block(response))[0]["response"]
        await gate.reached.wait()
    path = f"{PATH}/{created['id']}"
    assert not gate.aborted

    async def follow() -> str:
        return (await http.get(f"{path}?stream=true&starting_after=1")).text

    follower = asyncio.create_task(follow())
    await asyncio.sleep(0.05)
    gate.open.set()
    live = await follower
    whole = (await http.get(f"{path}?stream=true")).text
    assert whole.endswith(live)
    found = told(whole)
    assert types(found)[:2] == ["created", "in_progress"]
    assert types(found)[-1] == "completed"
    assert "".join(event.get("delta", "") for event in found) == "Once upon"
    assert live.startswith("event: response.output_item.added")
    assert (await http.get(path)).json() == found[-1]["response"]
    last = found[-1]["sequence_number"]
    assert (await http.get(f"{path}?stream=true&starting_after={last}")).text == ""


async def test_only_background_streams_are_streamed_again(http: httpx.AsyncClient) -> None:
    reply = await ask(http)
    path = f"{PATH}/{reply['id']}"
    for query, param in (
        ("stream=true", "stream"),
        ("stream=maybe", "stream"),
        ("starting_after=1", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("include=message.output_text.logprobs", "include"),
        ("include_obfuscation=true", "include_obfuscation"),
        ("x=1", "x"),
    ):
        response = await http.get(f"{path}?{query}")
        assert response.status_code == 400, query
        assert response.json()["error"]["param"] == param


async def test_background_responses_end_with_the_app(box: PlayedBox) -> None:
    gate = Gate()
    box.scripts["guide"] = gate
    app = create_app(box)
    async with served(app) as port, client_of(port) as http:
        reply = await ask(http, background=True)
        await gate.reached.wait()
    closing = asyncio.create_task(background.close(app))
    await asyncio.sleep(0.05)
    assert not closing.done()  # open answers may finish
    gate.open.set()
    await closing
    row = await box.responses.get(reply["id"], "")
    assert row is not None
    assert row.status == "completed"
    await box.responses.close()


async def test_background_responses_are_aborted_when_the_app_cannot_wait(
    box: PlayedBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.api.openai.responses.background._END_S", 0.05)
    gate = Gate()
    box.scripts["guide"] = gate
    app = create_app(box)
    async with served(app) as port, client_of(port) as http:
        reply = await ask(http, background=True)
        await gate.reached.wait()
    await background.close(app)
    assert gate.aborted
    row = await box.responses.get(reply["id"], "")
    assert row is not None
    assert row.status == "cancelled"
    await box.responses.close()


async def test_response_of_a_daemon_that_died_has_failed(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    gate = Gate()
    box.scripts["guide"] = gate
    reply = await ask(http, background=True)
    await gate.reached.wait()
    other = PlayedBox(box.responses._path.parent.parent)  # as after a crash: the same file
    async with served(create_app(other)) as port, client_of(port) as client:
        failed = strictly(Response, (await client.get(f"{PATH}/{reply['id']}")).text)
        assert failed["status"] == "failed"
        assert failed["error"]["code"] == "server_error"
        error = await refused(client, previous_response_id=reply["id"])
        assert "failed" in error["message"]
    await other.responses.close()
    gate.open.set()
    await until(http, reply)
