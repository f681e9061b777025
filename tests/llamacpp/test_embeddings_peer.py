"""Vectors and scores beside llama-server, built from the same source, where it is built."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.llamacpp.support import needs_llama_cpp
from tests.llamacpp.test_embeddings import (
    EMBEDDING,
    EXACT,
    TEXTS,
    TOLERANCE,
    embed,
    launch,
    model,
    rerank,
    running,
)
from tests.models import cache_dir
from tests.models.source import llama_cpp_version
from tests.models.tiny import Trait

pytestmark = needs_llama_cpp

LIMIT_S = 60.0
QUERY = "What does the box do?"
PLAIN = [text for text in TEXTS if "[SEP]" not in text]  # llama-server reads it as control tokens


@contextlib.contextmanager
def llama_server(trait: Trait, *options: str) -> Iterator[httpx.Client]:
    """Run it if `make bench` has built it; a compile of ten minutes is not worth this test."""
    programs = sorted(cache_dir().glob(f"llama-server-{llama_cpp_version()}-*/llama-server"))
    if not programs:
        pytest.skip("llama-server is not built; `make bench` builds it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = f"--port {port} -c 512 -b 512 -ub 512 -np 1 -t 1 -fa off -ctk f32 -ctv f32".split()
    process = subprocess.Popen(
        [str(programs[0]), "-m", str(model(trait)), *settings, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S, trust_env=False
        ) as client:
            _wait(client, programs[0])
            yield client
    finally:
        process.kill()
        process.wait(LIMIT_S)


def _wait(client: httpx.Client, program: Path) -> None:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        with contextlib.suppress(httpx.ConnectError):
            if client.get("/health").status_code == httpx.codes.OK:
                return
        time.sleep(0.05)
    pytest.skip(f"{program} does not start")


@pytest.mark.parametrize("trait", EMBEDDING)
async def test_vectors_are_llama_servers(trait: Trait) -> None:
    with llama_server(trait, "--embeddings") as peer:
        reply = peer.post("/v1/embeddings", json={"input": PLAIN}).json()
    expected = np.array([each["embedding"] for each in reply["data"]])
    async with running(launch(trait, context=512, **EXACT)) as engine:
        found = await embed(engine, *PLAIN)
    assert np.abs(found - expected).max() < TOLERANCE


async def test_scores_are_llama_servers() -> None:
    """Of BERT rerankers they are not: there it leaves out the last [SEP]."""
    with llama_server("rerank-last", "--reranking") as peer:
        reply = peer.post("/v1/rerank", json={"query": QUERY, "documents": PLAIN}).json()
    results = sorted(reply["results"], key=lambda each: each["index"])
    expected = [each["relevance_score"] for each in results]
    async with running(launch("rerank-last", context=512, **EXACT)) as engine:
        found = await rerank(engine, QUERY, PLAIN)
    assert found.scores == pytest.approx(expected, abs=TOLERANCE)
    assert found.prompt_tokens == reply["usage"]["prompt_tokens"]
