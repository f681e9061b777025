"""What clients hear of a model whose files are on their way."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from edged import errors
from edged.api import arrival, events
from edged.status import FetchStatus
from tests.api.conftest import PlayedBox

HALF = FetchStatus("hf:a/b", "b.gguf", done_bytes=1 << 30, total_bytes=2 << 30)
BODY = {"model": "guide", "messages": [{"role": "user", "content": "hi"}], "stream": True}


@pytest.mark.parametrize(
    ("fetch", "said", "retry_s"),
    [
        (HALF, "being fetched: 50% of 2 GiB; try again", 30),
        (replace(HALF, left_s=90.0), "50% of 2 GiB, about 90 s left", 91),
        (replace(HALF, left_s=4000.0, note="x"), "about 67 min left, x", 600),
        (replace(HALF, left_s=0.5), "about 0 s left", 5),
        (FetchStatus("hf:a/b"), "it will begin in a moment", 30),
        (replace(HALF, error="a.b answers 500", retry_in_s=20.0), "next try in 20 s", 21),
    ],
)
def test_words_and_time_to_come_again(fetch: FetchStatus, said: str, retry_s: int) -> None:
    error = arrival.refusal("m", fetch)
    assert isinstance(error, errors.ModelLoading)
    assert said in error.message
    assert error.retry_after_s == retry_s


def test_hopeless_fetch_is_no_matter_of_waiting() -> None:
    error = arrival.refusal("m", replace(HALF, error="gated", is_hopeless=True))
    assert isinstance(error, errors.ModelFailed)
    assert error.message == "model 'm' cannot be fetched: gated"


async def test_stream_waits_for_files_that_come_soon_and_hears_how_far_they_are(
    box: PlayedBox, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PING_S", 0.05)
    box.fetches["guide"] = replace(HALF, left_s=60.0)
    lines: list[str] = []
    async with http.stream("POST", "/v1/chat/completions", json=BODY) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            lines.append(line)
            if line == ": fetching, 50% of 2 GiB, about 60 s left":
                assert not box.asked
                box.fetches.clear()
    assert lines[-2] == "data: [DONE]"
    assert len(box.asked) == 1


@pytest.mark.parametrize("left_s", [None, 4000.0])
async def test_stream_does_not_wait_for_what_takes_long(
    box: PlayedBox, http: httpx.AsyncClient, left_s: float | None
) -> None:
    fetch = replace(HALF, left_s=left_s)
    box.fetches["guide"] = fetch

    async def refused(_: Any) -> Any:
        raise arrival.refusal("guide", fetch)
        yield

    box.scripts["guide"] = refused
    async with asyncio.timeout(30):
        answer = await http.post("/v1/chat/completions", json=BODY)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_loading"
    assert answer.headers["retry-after"] == ("30" if left_s is None else "600")
