"""What Prometheus sees: counters fed by the API, gauges read from the status at a scrape."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest

from edged.protocol import Usage
from edged.status import ModelStatus, State, Status

MEDIA_TYPE = "text/plain; version=0.0.4"  # UTF-8

_TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_GAP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_Read = Callable[[ModelStatus], float]
_STATES: tuple[str, ...] = get_args(State)


class Gaps:
    """Times between two pieces of one answer, in s, of one model.

    Observed for every token of every stream: the library's histogram takes two locks for each,
    which is a tenth of all that a stream costs.
    """

    def __init__(self) -> None:
        self.sum_s = 0.0
        self._counts = [0] * (len(_GAP_BUCKETS_S) + 1)

    def observe(self, seconds: float) -> None:
        """Count one gap."""
        self._counts[bisect.bisect_left(_GAP_BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return each upper bound with the number of gaps up to it."""
        bounds = [*(str(float(bound)) for bound in _GAP_BUCKETS_S), "+Inf"]
        return list(zip(bounds, itertools.accumulate(self._counts), strict=True))


class Metrics:
    """Counters of one daemon, with a registry of their own. Used in the daemon's loop only.

    The label `model` is always a configured name (or empty): a client cannot invent series.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "edged_requests",
            "HTTP requests answered.",
            ["model", "endpoint", "status"],
            registry=self._registry,
        )
        self._prompt = self._tokens("prompt", "Tokens of the prompts, cached ones included.")
        self._cached = self._tokens("cached", "Prompt tokens that were taken from resident KV.")
        self._completion = self._tokens("completion", "Tokens generated.")
        self._ttft = Histogram(
            "edged_ttft_seconds",
            "From the request to its first token.",
            ["model"],
            buckets=_TTFT_BUCKETS_S,
            registry=self._registry,
        )
        self._gaps: dict[str, Gaps] = {}
        self._key_requests = Counter(
            "edged_key_requests",
            "HTTP requests that came with a key, by the key's name.",
            ["key", "status"],
            registry=self._registry,
        )
        self._key_tokens = Counter(
            "edged_key_tokens",
            "Tokens of prompts and answers, by the key's name.",
            ["key"],
            registry=self._registry,
        )
        self._wrong_keys = Counter(
            "edged_wrong_keys",
            "Requests with a key that is not good here.",
            ["reason"],
            registry=self._registry,
        )

    def _tokens(self, kind: str, documentation: str) -> Counter:
        return Counter(f"edged_{kind}_tokens", documentation, ["model"], registry=self._registry)

    def request_done(self, model: str, endpoint: str, status: int) -> None:
        """Count one HTTP request; `endpoint` is a route, never a raw path."""
        self._requests.labels(model, endpoint, str(status)).inc()

    def key_request(self, key: str, status: int) -> None:
        """Count one HTTP request of a key, by its name."""
        self._key_requests.labels(key, str(status)).inc()

    def key_tokens(self, key: str, tokens: int) -> None:
        """Count tokens of a key."""
        self._key_tokens.labels(key).inc(tokens)

    def wrong_key(self, reason: str) -> None:
        """Count one request with a wrong key: `unknown` or `expired`."""
        self._wrong_keys.labels(reason).inc()

    def usage(self, model: str, usage: Usage) -> None:
        """Count the tokens of one generation that ended, regularly or not."""
        self._prompt.labels(model).inc(usage.prompt_tokens)
        self._cached.labels(model).inc(usage.cached_tokens)
        self._completion.labels(model).inc(usage.completion_tokens)

    def first_token(self, model: str, seconds: float) -> None:
        """Record the time to the first token of one answer."""
        self._ttft.labels(model).observe(seconds)

    def gaps(self, model: str) -> Gaps:
        """Return the model's histogram of inter-token gaps."""
        return self._gaps.setdefault(model, Gaps())

    def render(self, status: Status) -> bytes:
        """Return the page of a scrape, in Prometheus' text format (`MEDIA_TYPE`)."""
        snapshot: Any = _Snapshot(status, self._gaps)
        return generate_latest(self._registry) + generate_latest(snapshot)


class _Snapshot:
    """The gauges of one scrape; `generate_latest` asks a registry for nothing but `collect`."""

    def __init__(self, status: Status, gaps: dict[str, Gaps]) -> None:
        self._status = status
        self._gaps = gaps
        self._models = status.models

    def collect(self) -> Iterable[Metric]:
        config = self._status.config
        yield GaugeMetricFamily(
            "edged_config_generation",
            "Configurations applied.",
            value=config.generation,
        )
        between = HistogramMetricFamily(
            "edged_inter_token_seconds", "Between two pieces of one answer.", labels=["model"]
        )
        for name, gaps in self._gaps.items():
            between.add_metric([name], gaps.buckets(), gaps.sum_s)
        yield between
        yield GaugeMetricFamily(
            "edged_config_problem",
            "1 while the newest models.toml is not in force.",
            value=int(config.problem is not None),
        )
        yield GaugeMetricFamily(
            "edged_hardware_lost",
            "GPUs that the box had and lacks now.",
            value=len(self._status.degraded),
        )
        yield GaugeMetricFamily(
            "edged_loop_lag_seconds",
            "The most that the daemon's loop was late in the last minute.",
            value=self._status.loop_lag_s,
        )
        state = GaugeMetricFamily(
            "edged_model_state", "1 for the state that the model is in.", labels=["model", "state"]
        )
        for model in self._models:
            for name in _STATES:
                state.add_metric([model.name, name], int(model.state == name))
        yield state
        yield self._gauge("edged_queue_depth", "Requests that wait.", lambda m: m.queued)
        yield self._gauge("edged_open_requests", "Requests in the worker.", lambda m: m.open)
        yield self._gauge(
            "edged_worker_memory_bytes", "Memory of the worker.", lambda m: m.memory_bytes or 0
        )
        yield self._gauge(
            "edged_worker_reserved_bytes",
            "Memory that is kept for the worker.",
            lambda m: m.reserved_bytes or 0,
        )
        yield self._gauge(
            "edged_model_rolled_back",
            "1 while earlier settings run because the newest failed.",
            lambda m: int(m.rolled_back is not None),
        )
        restarts = CounterMetricFamily(
            "edged_worker_restarts", "Restarts of the worker after a crash.", labels=["model"]
        )
        for model in self._models:
            restarts.add_metric([model.name], model.restarts)
        yield restarts
        yield self._gauge(
            "edged_kv_cells_used",
            "KV cells in use.",
            lambda m: m.stats.cells_used if m.stats else 0,
        )
        yield self._gauge(
            "edged_kv_cells", "KV cells there are.", lambda m: m.stats.cells if m.stats else 0
        )
        yield self._gauge(
            "edged_restored_tokens",
            "Tokens that the worker of now read back from saved prefixes.",
            lambda m: m.stats.restored_tokens if m.stats else 0,
        )

    def _gauge(self, name: str, text: str, read: _Read) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=["model"])
        for model in self._models:
            family.add_metric([model.name], read(model))
        return family
