from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from edged.metrics import Metrics
from edged.protocol import Usage
from tests.api.conftest import PlayedBox


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    page = metrics.render(PlayedBox().status()).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_requests_are_counted_by_model_endpoint_and_status() -> None:
    metrics = Metrics()
    for status in (200, 200, 503):
        metrics.request_done("guide", "/v1/chat/completions", status)
    found = samples(metrics)
    assert found["edged_requests_total", "/v1/chat/completions", "guide", "200"] == 2
    assert found["edged_requests_total", "/v1/chat/completions", "guide", "503"] == 1


def test_tokens_add_up() -> None:
    metrics = Metrics()
    metrics.usage("guide", Usage(prompt_tokens=10, completion_tokens=5, cached_tokens=4))
    metrics.usage("guide", Usage(prompt_tokens=1, completion_tokens=2))
    found = samples(metrics)
    assert found["edged_prompt_tokens_total", "guide"] == 11
    assert found["edged_cached_tokens_total", "guide"] == 4
    assert found["edged_completion_tokens_total", "guide"] == 7


def test_times_fall_into_buckets() -> None:
    metrics = Metrics()
    metrics.first_token("guide", 0.3)
    gaps = metrics.gaps("guide")
    for seconds in (0.002, 0.02, 20.0):
        gaps.observe(seconds)
    found = samples(metrics)
    assert found["edged_ttft_seconds_bucket", "0.25", "guide"] == 0
    assert found["edged_ttft_seconds_bucket", "0.5", "guide"] == 1
    assert found["edged_inter_token_seconds_bucket", "0.0025", "guide"] == 1
    assert found["edged_inter_token_seconds_bucket", "10.0", "guide"] == 2
    assert found["edged_inter_token_seconds_bucket", "+Inf", "guide"] == 3


def test_two_registries_do_not_share_counters() -> None:
    first, second = Metrics(), Metrics()
    first.request_done("guide", "/health", 200)
    assert ("edged_requests_total", "/health", "guide", "200") not in samples(second)
