from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.api.conftest import PlayedBox

CHAT = "/v1/chat/completions"


async def test_health_lives(http: httpx.AsyncClient) -> None:
    response = await http.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_ready_names_what_is_not(http: httpx.AsyncClient, box: PlayedBox) -> None:
    assert (await http.get("/ready")).json() == {"ready": True, "waiting_for": []}
    box.is_ready = False
    response = await http.get("/ready")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "waiting_for": ["guide: starting"]}


async def test_status_shows_config_hardware_and_models(http: httpx.AsyncClient) -> None:
    found = (await http.get("/status")).json()
    assert found["config"]["generation"] == 3
    assert found["hardware"]["cpu"]["model"] == "a cpu"
    assert found["models"][0]["reasons"] == ["no GPU here"]


async def test_models_are_listed_under_every_name(http: httpx.AsyncClient) -> None:
    found = (await http.get("/v1/models")).json()
    assert found["object"] == "list"
    names = {model["id"]: model for model in found["data"]}
    assert set(names) == {"guide", "gpt-4o-mini", "Qwen/Qwen3-8B", "other/alias"}
    assert names["gpt-4o-mini"]["edged"]["alias_of"] == "guide"
    guide = names["guide"]["edged"]
    assert (guide["state"], guide["engine"], guide["context"]) == ("ready", "llamacpp", 8192)
    assert guide["why"] == ["no GPU here"]
    assert guide["modalities"] == ["text"]


async def test_model_is_found_by_name_alias_and_with_slashes(http: httpx.AsyncClient) -> None:
    for name in ("guide", "gpt-4o-mini", "Qwen/Qwen3-8B", "Qwen%2FQwen3-8B", "other/alias"):
        response = await http.get(f"/v1/models/{name}")
        assert response.status_code == 200, name
        assert response.json()["id"] == name.replace("%2F", "/")
    response = await http.get("/v1/models/nobody")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_metrics_count_by_configured_model_only(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    for model in ("guide", "gpt-4o-mini", "nobody-1", "nobody-2"):
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        await http.post(CHAT, json=body)
    await http.get("/made/up/path")
    box.problem = "line 3"
    response = await http.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    page = response.text
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples["edged_requests_total", CHAT, "200", "guide"] == 2
    assert samples["edged_requests_total", "", CHAT, "404"] == 2
    assert samples["edged_prompt_tokens_total", "guide"] == 14
    assert samples["edged_cached_tokens_total", "guide"] == 6
    assert samples["edged_completion_tokens_total", "guide"] == 8
    assert samples["edged_ttft_seconds_count", "guide"] == 2
    assert samples["edged_inter_token_seconds_count", "guide"] == 6
    assert samples["edged_model_state", "guide", "ready"] == 1
    assert samples["edged_model_state", "failed", "guide"] == 0
    assert samples["edged_worker_restarts_total", "guide"] == 2
    assert samples["edged_config_generation",] == 3
    assert samples["edged_config_problem",] == 1
    assert "nobody" not in page
    assert "made" not in page
