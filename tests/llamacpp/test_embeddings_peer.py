"""Vectors and scores beside llama-server, built from the same source, where it is built."""

from __future__ import annotations

import numpy as np
import pytest

from tests.llamacpp.peer import llama_server
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
from tests.models.tiny import Trait

pytestmark = needs_llama_cpp

SETTINGS = ["-c", "512", "-b", "512", "-ub", "512", "-fa", "off", "-ctk", "f32", "-ctv", "f32"]
QUERY = "What does the box do?"
PLAIN = [text for text in TEXTS if "[SEP]" not in text]  # llama-server reads it as control tokens


@pytest.mark.parametrize("trait", EMBEDDING)
async def test_vectors_are_llama_servers(trait: Trait) -> None:
    with llama_server(model(trait), *SETTINGS, "--embeddings") as peer:
        reply = peer.post("/v1/embeddings", json={"input": PLAIN}).json()
    expected = np.array([each["embedding"] for each in reply["data"]])
    async with running(launch(trait, context=512, **EXACT)) as engine:
        found = await embed(engine, *PLAIN)
    assert np.abs(found - expected).max() < TOLERANCE


async def test_scores_are_llama_servers() -> None:
    """Of BERT rerankers they are not: there it leaves out the last [SEP]."""
    with llama_server(model("rerank-last"), *SETTINGS, "--reranking") as peer:
        reply = peer.post("/v1/rerank", json={"query": QUERY, "documents": PLAIN}).json()
    results = sorted(reply["results"], key=lambda each: each["index"])
    expected = [each["relevance_score"] for each in results]
    async with running(launch("rerank-last", context=512, **EXACT)) as engine:
        found = await rerank(engine, QUERY, PLAIN)
    assert found.scores == pytest.approx(expected, abs=TOLERANCE)
    assert found.prompt_tokens == reply["usage"]["prompt_tokens"]
