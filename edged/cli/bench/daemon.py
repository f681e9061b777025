"""The daemon as its clients see it, with a clock."""

from __future__ import annotations

import time
from typing import Any

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from edged.cli.bench import answer
from edged.cli.bench.answer import Answer, AnswerError
from edged.cli.client import message_of
from edged.status import Status


class BenchError(Exception):
    """It cannot be measured; the message says why."""


class Daemon:
    """Sends requests and counts them, to know those of others."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.n_sent = 0

    async def status(self) -> Status:
        """Return `/status`."""
        response = await self._get("/status")
        try:
            return msgspec.json.decode(response.content, type=Status)
        except msgspec.MsgspecError as error:
            raise BenchError(f"this command and the daemon differ in version: {error}") from None

    async def resolve(self, name: str) -> str:
        """Return the configured name of a model or alias."""
        found = (await self._get(f"/v1/models/{name}")).json()
        return str(found["edged"]["alias_of"] or found["id"])

    async def n_others(self) -> int:
        """Return how many requests of others for a model have ended since the daemon's start.

        Ours are taken off: none may be under way.
        """
        page = (await self._get("/metrics")).text
        ended = sum(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == "edged_requests_total" and sample.labels["model"]
        )
        return int(ended) - self.n_sent

    async def _get(self, path: str) -> httpx.Response:
        response = await self._client.get(path)
        if response.status_code != httpx.codes.OK:
            raise BenchError(message_of(response))
        return response

    async def complete(self, body: dict[str, Any]) -> Answer:
        """Stream one completion. What arrives is only read when all is there: it costs time."""
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        pieces: list[tuple[float, bytes]] = []
        self.n_sent += 1
        sent_s = time.perf_counter()
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                raise BenchError(message_of(response))
            async for data in response.aiter_raw():
                pieces.append((time.perf_counter(), data))  # noqa: PERF401 - each at its time
        try:
            return answer.read(sent_s, pieces)
        except AnswerError as error:
            raise BenchError(str(error)) from None

    async def post(self, path: str, body: dict[str, Any]) -> tuple[float, int]:
        """Return the s that a request took, and its prompt tokens."""
        self.n_sent += 1
        sent_s = time.perf_counter()
        response = await self._client.post(path, json=body)
        took_s = time.perf_counter() - sent_s
        if response.status_code != httpx.codes.OK:
            raise BenchError(message_of(response))
        return took_s, int(response.json()["usage"]["prompt_tokens"])
