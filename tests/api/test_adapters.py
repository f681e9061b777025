"""How a request names adapters, in every dialect, and what is listed of them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from edged.plan import AdapterPlan
from edged.protocol import AdapterFile
from edged.status import AdapterStatus
from tests.api.conftest import PlayedBox

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HI},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi", "store": False},
    "/v1/messages": {"messages": HI, "max_tokens": 5},
}


def file(name: str) -> AdapterFile:
    return AdapterFile(name, f"/{name}.gguf", "1")


@pytest.fixture(autouse=True)
def adapters(box: PlayedBox) -> None:
    plans = (
        AdapterPlan("support", 0.5, ("helper",), file=file("support")),
        AdapterPlan("sales", file=file("sales")),
        AdapterPlan("broken", refusal="/b.gguf is truncated"),
    )
    models = box.plan.models | {"guide": replace(box.plan.models["guide"], adapters=plans)}
    called = {
        f"{base}:{each.name}": each.name for base in ("guide", "gpt-4o-mini") for each in plans
    }
    called["helper"] = "support"
    names = box.plan.names | dict.fromkeys(called, "guide")
    box.plan = replace(box.plan, models=models, names=names, adapters=called)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"model": "guide"}, ()),
        ({"model": "guide:support"}, (("support", 0.5),)),
        ({"model": "gpt-4o-mini:sales"}, (("sales", 1.0),)),
        ({"model": "helper"}, (("support", 0.5),)),
        ({"lora": "sales"}, (("sales", 1.0),)),
        ({"lora": "guide:sales"}, (("sales", 1.0),)),
        ({"lora": []}, ()),
        ({"lora": None}, ()),
        ({"lora": ["sales", "support"]}, (("sales", 1.0), ("support", 0.5))),
        ({"lora": [{"name": "sales", "scale": 0.25}]}, (("sales", 0.25),)),
        ({"lora": [{"id": 1, "scale": 2}, {"id": "support"}]}, (("sales", 2.0), ("support", 0.5))),
        ({"model": "guide:support", "lora": ["sales"]}, (("support", 0.5), ("sales", 1.0))),
    ],
)
async def test_adapters_are_asked_for_in_every_dialect(
    http: httpx.AsyncClient,
    box: PlayedBox,
    path: str,
    asked: dict[str, Any],
    expected: tuple[tuple[str, float], ...],
) -> None:
    response = await http.post(path, json={"model": "guide"} | BODIES[path] | asked)
    assert response.status_code == 200, response.text
    ((model, request),) = box.asked
    assert (model, request.adapters) == ("guide", expected)


async def test_every_choice_has_the_adapters(http: httpx.AsyncClient, box: PlayedBox) -> None:
    body = {"model": "helper", "messages": HI, "n": 3}
    assert (await http.post(CHAT, json=body)).status_code == 200
    assert [request.adapters for _, request in box.asked] == [(("support", 0.5),)] * 3


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"model": "guide:none"}, (404, "it has: support, sales, broken")),
        ({"lora": "none"}, (400, "it has: support, sales, broken")),
        ({"lora": "suport"}, (400, 'did you mean "support"?')),
        ({"lora": [{"id": 3}]}, (400, "no adapter 3")),
        ({"lora": [{"id": -1}]}, (400, "no adapter -1")),
        ({"lora": [{"scale": 1}]}, (400, "by `name` or by `id`")),
        ({"lora": [{"id": 0, "name": "sales"}]}, (400, "by `name` or by `id`")),
        ({"lora": ["sales", {"id": 1}]}, (400, "named twice")),
        ({"lora": [{"id": 0, "scale": 1000}]}, (400, "scale")),
        ({"lora": 7}, (400, "lora")),
        ({"model": "Qwen/Qwen3-8B", "lora": ["sales"]}, (400, "it has: none")),
        ({"model": "guide:broken"}, (503, "/b.gguf is truncated")),
        ({"lora": [{"id": 2}]}, (503, "/b.gguf is truncated")),
    ],
)
async def test_adapter_that_cannot_be_had_is_an_error_that_says_so(
    http: httpx.AsyncClient,
    box: PlayedBox,
    path: str,
    asked: dict[str, Any],
    expected: tuple[int, str],
) -> None:
    response = await http.post(path, json={"model": "guide"} | BODIES[path] | asked)
    status, words = expected
    assert response.status_code == status, response.text
    assert words in response.json()["error"]["message"]
    assert box.asked == []


async def test_other_endpoints_know_no_adapters(http: httpx.AsyncClient) -> None:
    body = {"model": "guide", "input": "Hi", "lora": ["sales"]}
    response = await http.post("/v1/embeddings", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "lora"


async def test_models_list_adapters_as_models(
    http: httpx.AsyncClient, box: PlayedBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = box.status()
    adapters = (
        AdapterStatus("support", "ready", 0.5),
        AdapterStatus("sales", "failed", 1.0, "it is damaged"),
    )
    models = [replace(m, adapters=adapters) if m.name == "guide" else m for m in whole.models]
    monkeypatch.setattr(box, "status", lambda: replace(whole, models=tuple(models)))
    found = {m["id"]: m["edged"] for m in (await http.get("/v1/models")).json()["data"]}
    assert list(found) == [
        "guide", "gpt-4o-mini", "Qwen/Qwen3-8B", "other/alias",
        "guide:support", "guide:sales", "guide:broken", "helper",
    ]  # fmt: skip
    assert found["guide"]["adapters"] == ["support", "sales", "broken"]
    assert found["guide:support"]["adapter"] == "support"
    assert found["guide:support"]["aliases"] == ["helper"]
    assert found["guide:support"]["alias_of"] is None
    assert found["guide:support"]["error"] is None
    assert found["guide:sales"]["error"] == "it is damaged"
    assert found["guide"]["error"] is None
    assert found["helper"]["alias_of"] == "guide:support"
    shown = (await http.get("/v1/models/gpt-4o-mini:sales")).json()
    assert (shown["id"], shown["edged"]["alias_of"]) == ("gpt-4o-mini:sales", "guide:sales")
