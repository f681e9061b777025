"""Embeddings and rerank on the wire, over a box that plays the engine's replies."""

from __future__ import annotations

import array
import asyncio
import base64
import re
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edged import errors
from edged.api.openai import embeddings, rerank
from edged.api.openai.embeddings import pieces, to_inputs
from edged.config import Model
from edged.protocol import Embed, Embedded, Event, Failed, Ranked, Rerank, Text, Tokens
from tests.api.conftest import PlayedBox, plan_of, served
from tests.api.test_upstream import Upstream

VECTORS = [[0.6, -0.8, 0.0], [0.1, 1e-12, -0.994987]]


async def vectors(request: Any) -> AsyncGenerator[Event, None]:
    assert isinstance(request, Embed)
    found = [array.array("f", VECTORS[i % 2]).tobytes() for i in range(len(request.inputs))]
    yield Embedded(request.id, found, 11)


async def ranks(request: Any) -> AsyncGenerator[Event, None]:
    assert isinstance(request, Rerank)
    yield Ranked(request.id, [[0.2, 0.9, 0.2, 0.5][i] for i in range(len(request.documents))], 21)


@pytest.fixture
def box() -> PlayedBox:
    box = PlayedBox()
    box.scripts["guide"] = vectors
    box.scripts["Qwen/Qwen3-8B"] = ranks
    return box


async def embed(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/embeddings", json={"model": "guide", **body})


async def rank(http: httpx.AsyncClient, path: str = "/v1/rerank", **body: Any) -> httpx.Response:
    whole = {"model": "Qwen/Qwen3-8B", "query": "q", "documents": list("abcd")} | body
    return await http.post(path, json=whole)


def error(reply: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    found: dict[str, Any] = reply.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


# ── embeddings ──


async def test_floats_come_back_in_openais_shape(http: httpx.AsyncClient) -> None:
    reply = await embed(http, input=["a", "b"])
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert {key: body[key] for key in ("object", "model", "usage")} == {
        "object": "list",
        "model": "guide",
        "usage": {"prompt_tokens": 11, "total_tokens": 11},
    }
    assert [(each["object"], each["index"]) for each in body["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    for each, expected in zip(body["data"], VECTORS, strict=True):
        assert each["embedding"] == list(array.array("f", expected))


async def test_base64_holds_the_same_bytes(http: httpx.AsyncClient) -> None:
    body = (await embed(http, input=["a", "b"], encoding_format="base64")).json()
    for each, expected in zip(body["data"], VECTORS, strict=True):
        assert base64.b64decode(each["embedding"]) == array.array("f", expected).tobytes()


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", [Text("a")]),
        (["a"], [Text("a")]),
        (["a", "b"], [Text("a"), Text("b")]),
        ([5, 6], [Tokens([5, 6])]),
        ([[5, 6], [7]], [Tokens([5, 6]), Tokens([7])]),
        (["a", [7]], [Text("a"), Tokens([7])]),
    ],
)
async def test_every_form_of_input_reaches_the_engine(
    http: httpx.AsyncClient, box: PlayedBox, given: Any, inputs: list[Any]
) -> None:
    reply = await embed(http, input=given, dimensions=3, user="somebody")
    assert reply.status_code == 200
    (asked,) = [request for _, request in box.asked]
    assert isinstance(asked, Embed)
    assert (asked.inputs, asked.dimensions) == (inputs, 3)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "input", "missing"),
        ({"input": None}, "input", "expected"),
        ({"input": ""}, "input", "is empty"),
        ({"input": []}, "input", "length >= 1"),
        ({"input": ["a", ""]}, "input[1]", "is empty"),
        ({"input": [[5], []]}, "input[1]", "is empty"),
        ({"input": ["a", 5]}, "input", "side by side"),
        ({"input": [5, "a"]}, "input", "side by side"),
        ({"input": [5, [6]]}, "input", "side by side"),
        ({"input": [-1]}, "input[0]", ">= 0"),
        ({"input": [[5, -1]]}, "input[0][1]", ">= 0"),
        ({"input": [5.5]}, "input[0]", "got `float`"),
        ({"input": {"text": "a"}}, "input", "got `object`"),
        ({"input": ["a"] * 2049}, "input", "2049 items, 2048"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "int8"),
        ({"input": "a", "dimensions": 0}, "dimensions", ">= 1"),
        ({"input": "a", "dimensions": 1.5}, "dimensions", "got `float`"),
        ({"input": "a", "input_type": "query"}, "input_type", "not supported"),
        ({"input": "a", "embd_normalize": -1}, "embd_normalize", "not supported"),
        ({"input": "a", "temperature": 0.5}, "temperature", "not a parameter of this"),
    ],
)
async def test_bad_embeddings_request_names_the_field(
    http: httpx.AsyncClient, box: PlayedBox, body: dict[str, Any], param: str, said: str
) -> None:
    found = error(await embed(http, **body))
    assert found["param"] == param
    assert said in found["message"]
    assert not box.asked


async def test_more_token_ids_than_the_context_are_refused_here(http: httpx.AsyncClient) -> None:
    found = error(await embed(http, input=[[1], [5] * 8193]))
    assert (found["code"], found["param"]) == ("context_length_exceeded", "input[1]")
    assert "8193 tokens; this model's maximum context length is 8192" in found["message"]


async def test_what_the_engine_refuses_reaches_the_client(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    async def refuse(request: Any) -> AsyncGenerator[Event, None]:
        yield Failed(request.id, "wrong_model_kind", "it chats", "model")

    box.scripts["guide"] = refuse
    found = error(await embed(http, input="a"))
    assert (found["code"], found["param"]) == ("wrong_model_kind", "model")


async def test_tokens_count_in_the_metrics(http: httpx.AsyncClient) -> None:
    await embed(http, input="a")
    page = (await http.get("/metrics")).text
    assert 'edged_prompt_tokens_total{model="guide"} 11' in page


async def test_client_that_leaves_aborts(http: httpx.AsyncClient, box: PlayedBox) -> None:
    async def stall(request: Any) -> AsyncGenerator[Event, None]:
        await asyncio.Event().wait()
        yield Embedded(request.id, [], 0)

    box.scripts["guide"] = stall
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/v1/embeddings", json={"model": "guide", "input": "a"}, timeout=0.2)
    async with asyncio.timeout(10):
        await box.closed.wait()
    assert box.open == 0


def test_pieces_of_a_large_reply_are_short_and_whole() -> None:
    vector = array.array("f", [i / 4096 for i in range(4096)]).tobytes()
    found = Embedded(1, [vector] * 64, 3)
    longest = 0.0
    parts = []
    writing = pieces("m", found, base64=False)
    while True:
        started = time.thread_time()
        part = next(writing, None)
        longest = max(longest, time.thread_time() - started)
        if part is None:
            break
        parts.append(part)
    whole = httpx.Response(200, content=b"".join(parts)).json()
    assert [each["index"] for each in whole["data"]] == list(range(64))
    assert array.array("f", whole["data"][63]["embedding"]).tobytes() == vector
    # a sixteenth of the whole at the most between two turns of the loop
    assert max(map(len, parts)) < sum(map(len, parts)) / 6
    assert len(parts) >= 8
    assert longest > 0


def test_one_text_is_no_list_of_characters() -> None:
    assert to_inputs("ab", 10) == [Text("ab")]
    with pytest.raises(errors.ContextLengthExceeded):
        to_inputs([1] * 11, 10)


async def test_upstream_gets_both_untouched_but_for_the_name(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    app = Upstream()
    async with served(app) as port:
        url = f"http://127.0.0.1:{port}/v1"
        box.plan = plan_of(Model("far", upstream=url, aliases=("away",)))
        odd = {"model": "away", "input": {"image": 1}, "task": "x"}
        assert (await http.post("/v1/embeddings", json=odd)).content == b'{"a":  1}'
        assert (await http.post("/rerank", json={"model": "far"})).status_code == 200
    far = {"model": "far"}
    assert app.asked == [("/v1/embeddings", odd | far), ("/v1/rerank", far)]


# ── rerank ──


@pytest.mark.parametrize("path", rerank._PATHS)
async def test_documents_come_back_sorted_on_every_path(http: httpx.AsyncClient, path: str) -> None:
    body = (await rank(http, path)).json()
    assert body["id"].startswith("rerank-")
    assert (body["object"], body["model"]) == ("list", "Qwen/Qwen3-8B")
    assert body["usage"] == {"prompt_tokens": 21, "total_tokens": 21}
    assert body["results"] == [
        {"index": 1, "relevance_score": 0.9},
        {"index": 3, "relevance_score": 0.5},
        {"index": 0, "relevance_score": 0.2},
        {"index": 2, "relevance_score": 0.2},
    ]


async def test_best_ones_come_with_their_documents_if_wanted(
    http: httpx.AsyncClient, box: PlayedBox
) -> None:
    documents = ["a", {"text": "b"}, {"text": "c"}, "d"]
    reply = await rank(http, documents=documents, top_n=2, return_documents=True)
    assert reply.json()["results"] == [
        {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}},
        {"index": 3, "relevance_score": 0.5, "document": {"text": "d"}},
    ]
    (asked,) = [request for _, request in box.asked]
    assert isinstance(asked, Rerank)
    assert (asked.query, asked.documents) == ("q", list("abcd"))
    assert len((await rank(http, top_n=99)).json()["results"]) == 4


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"query": None}, "query", "expected `str`"),
        ({"query": ""}, "query", "length >= 1"),
        ({"documents": None}, "documents", "expected `array`"),
        ({"documents": []}, "documents", "length >= 1"),
        ({"documents": ["a", ""]}, "documents[1]", "is empty"),
        ({"documents": ["a", {"text": ""}]}, "documents[1]", "is empty"),
        ({"documents": ["a", 5]}, "documents[1]", "got `int`"),
        ({"documents": [{"title": "a"}]}, "documents[0]", "unknown field `title`"),
        ({"documents": ["a", {}]}, "documents[1].text", "missing"),
        ({"documents": [{"text": "a", "title": "b"}]}, "documents[0]", "unknown field `title`"),
        ({"documents": ["a"] * 2049}, "documents", "length <= 2048"),
        ({"top_n": 0}, "top_n", ">= 1"),
        ({"return_documents": "yes"}, "return_documents", "expected `bool`"),
        ({"raw_scores": True}, "raw_scores", "not supported"),
        ({"max_tokens_per_doc": 4096}, "max_tokens_per_doc", "not supported"),
        ({"rank_fields": ["title"]}, "rank_fields", "not supported"),
    ],
)
async def test_bad_rerank_request_names_the_field(
    http: httpx.AsyncClient, box: PlayedBox, body: dict[str, Any], param: str, said: str
) -> None:
    found = error(await rank(http, **body))
    assert found["param"] == param
    assert said in found["message"]
    assert not box.asked


def test_documents_name_what_is_honoured_and_what_is_refused() -> None:
    text = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    for title, wire, refused in (
        ("## Embeddings", embeddings.EmbeddingsRequest, embeddings.REFUSED),
        ("## Rerank", rerank.RerankRequest, rerank.REFUSED),
    ):
        section = re.split(r"^#+ ", text.partition(f"{title}\n")[2], flags=re.MULTILINE)[0]
        rows = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
        assert set(rows) == set(wire.__struct_fields__) - {"model"}
        listed = re.findall(r"`(\w+)`", section.partition("Refused by name")[2])
        assert set(listed) == set(refused)


def test_refused_names_are_refused_and_not_honoured() -> None:
    assert set(embeddings.REFUSED).isdisjoint(embeddings.EmbeddingsRequest.__struct_fields__)
    assert set(rerank.REFUSED).isdisjoint(rerank.RerankRequest.__struct_fields__)


async def test_neutral_values_of_refused_names_pass(http: httpx.AsyncClient) -> None:
    said = {name: values[0] for name, values in embeddings.REFUSED.items() if values}
    assert (await embed(http, input="a", **said)).status_code == 200
    said = {name: values[0] for name, values in rerank.REFUSED.items() if values}
    assert (await rank(http, **said)).status_code == 200
