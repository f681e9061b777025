"""The Responses API: what is kept, who may see it, what happens when it cannot be kept."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai.types.responses import Response, ResponseItemList
from structlog.testing import capture_logs

from edged.api.exchange import Exchange
from edged.store.responses import Limits
from tests.api.conftest import PlayedBox, eventually
from tests.api.responses_support import (
    CALL,
    PATH,
    RETURNED,
    TEXT,
    WEATHER,
    Gate,
    ask,
    asks,
    calling,
    events,
    first_block,
    prompt,
    refused,
    strictly,
    told,
)


async def test_conversation_goes_on_by_its_last_response(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    box.scripts["guide"] = calling
    first = await ask(http, input="weather?", instructions="first only", tools=[WEATHER])
    outputs = [
        {"type": "function_call_output", "call_id": each["call_id"], "output": "rain"}
        for each in first["output"]
        if each["type"] == "function_call"
    ]
    second = await events(
        http, input=outputs, previous_response_id=first["id"], instructions="Now be kind."
    )
    third = await ask(
        http, input="thanks", previous_response_id=second[-1]["response"]["id"], store=False
    )
    assert third["store"] is False
    messages = prompt(box).messages
    assert [m["role"] for m in messages] == [
        "user", "assistant", "tool", "tool", "assistant", "user",
    ]  # fmt: skip
    assert messages[1]["reasoning_content"] == "which city?"
    assert [each["id"] for each in messages[1]["tool_calls"]] == ["call_a", "call_b"]
    assert messages[5]["content"] == "thanks"
    assert (await http.get(f"{PATH}/{third['id']}")).status_code == 404


async def test_response_is_kept_as_it_was_told_until_it_is_deleted(
    http: httpx.AsyncClient,
) -> None:
    reply = await ask(http)
    path = f"{PATH}/{reply['id']}"
    assert strictly(Response, (await http.get(path)).text) == reply
    head = await http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert (await http.get(f"{path}?include[]=message.input_image.image_url")).status_code == 200
    assert (await http.delete(path)).json() == {
        "id": reply["id"],
        "object": "response",
        "deleted": True,
    }
    for response in (
        await http.get(path),
        await http.delete(path),
        await http.get(f"{path}/input_items"),
        await http.post(f"{path}/cancel"),
    ):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "response_not_found"
    error = await refused(http, previous_response_id=reply["id"])
    assert error["code"] == "previous_response_not_found"
    assert error["param"] == "previous_response_id"


async def test_keys_see_only_their_own(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = await ask(http)
    item = mine["output"][-1]["id"]
    open_own = Exchange.open

    def open_other(scope: Any, *more: Any) -> Exchange:
        exchange = open_own(scope, *more)
        exchange.owner = "other"
        return exchange

    monkeypatch.setattr(Exchange, "open", open_other)
    assert (await http.get(f"{PATH}/{mine['id']}")).status_code == 404
    assert (await http.delete(f"{PATH}/{mine['id']}")).status_code == 404
    assert (await http.get(f"{PATH}/{mine['id']}/input_items")).status_code == 404
    error = await refused(http, previous_response_id=mine["id"])
    assert error["code"] == "previous_response_not_found"
    response = await http.post(PATH, json=asks(input=[{"type": "item_reference", "id": item}]))
    assert response.json()["error"]["code"] == "item_not_found"


async def test_items_are_referred_to_by_id(http: httpx.AsyncClient, box: PlayedBox) -> None:
    first = await ask(http, input=[{"role": "user", "content": "one"}])
    said = first["output"][-1]["id"]
    read = (await http.get(f"{PATH}/{first['id']}/input_items")).json()["data"][0]["id"]
    await ask(http, input=[{"id": read}, {"type": "item_reference", "id": said}])
    assert [m["content"] for m in prompt(box).messages] == ["one", TEXT]
    response = await http.post(PATH, json=asks(input=[{"id": "msg_nobody"}]))
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "input[0].id"


async def test_input_items_are_paged(http: httpx.AsyncClient) -> None:
    first = await ask(http, input=[{"role": "user", "content": str(i)} for i in range(5)])
    second = await ask(
        http,
        input=[CALL, RETURNED, {"role": "assistant", "content": "so"}],
        previous_response_id=first["id"],
    )

    async def page(query: str) -> tuple[list[str], bool]:
        response = await http.get(f"{PATH}/{second['id']}/input_items?{query}")
        assert response.status_code == 200, response.text
        found = strictly(ResponseItemList, response.text)
        ids = [item["id"] for item in found["data"]]
        assert (found["first_id"], found["last_id"]) == ((ids or [""])[0], (ids or [""])[-1])
        return ids, found["has_more"]

    every, more = await page("order=asc")
    assert len(every) == 5 + 2 + 3  # inputs, what was said, inputs
    assert not more
    assert (await page("")) == (every[::-1], False)
    assert (await page("limit=4")) == (every[:5:-1], True)
    assert (await page(f"limit=4&after={every[6]}")) == (every[5:1:-1], True)
    assert (await page(f"limit=4&after={every[2]}")) == (every[1::-1], False)
    assert (await page(f"order=asc&limit=2&after={every[2]}")) == (every[3:5], True)
    assert (await page(f"order=asc&limit=2&before={every[4]}")) == (every[2:4], True)
    assert (await page(f"order=asc&after={every[1]}&before={every[4]}")) == (every[2:4], False)
    assert (await page(f"order=asc&after={every[-1]}")) == ([], False)
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=nobody", "colour=red"):
        response = await http.get(f"{PATH}/{second['id']}/input_items?{query}")
        assert response.status_code == 400, query
        assert response.json()["error"]["param"] == query.partition("=")[0]


async def test_old_responses_go(http: httpx.AsyncClient, box: PlayedBox) -> None:
    reply = await ask(http)
    box.now_s += 31 * 86400
    await box.responses.tidy()
    assert (await http.get(f"{PATH}/{reply['id']}")).status_code == 404


async def test_box_that_keeps_nothing_says_so(http: httpx.AsyncClient, box: PlayedBox) -> None:
    box.kept = Limits(0, 256 << 20)
    reply = await ask(http)
    assert reply["store"] is False
    assert (await http.get(f"{PATH}/{reply['id']}")).status_code == 404
    for more in ({"store": True}, {"background": True}, {"previous_response_id": reply["id"]}):
        error = await refused(http, **more)
        assert (error["code"], error["param"]) == ("unsupported_parameter", next(iter(more)))
        assert "responses_keep" in error["message"]


async def test_answer_goes_out_when_it_cannot_be_kept(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    box.responses._path.parent.write_text("in the way")  # its folder cannot be made
    with capture_logs() as logs:
        reply = await ask(http)
        assert (await events(http))[-1]["type"] == "response.completed"
    assert [log["event"] for log in logs].count("responses.not_stored") == 2
    response = await http.get(f"{PATH}/{reply['id']}")
    assert response.status_code == 503
    assert (await http.post(PATH, json=asks(background=True))).status_code == 503


async def test_damaged_state_does_not_stop_the_answer(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    await ask(http)
    await box.responses.close()
    box.responses._path.write_bytes(b"what is this?" * 1000)
    reply = await ask(http)
    assert (await ask(http, previous_response_id=reply["id"]))["status"] == "completed"


async def test_client_that_leaves_aborts_and_leaves_nothing(port: int, box: PlayedBox) -> None:
    gate = Gate()
    box.scripts["guide"] = gate
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        async with client.stream("POST", PATH, json=asks(stream=True)) as response:
            created = told(await first_block(response))[0]
            await gate.reached.wait()
        await eventually(lambda: gate.aborted)
        await eventually(lambda: box.open == 0)
        response = await client.get(f"{PATH}/{created['response']['id']}")
        assert response.status_code == 404
