"""Embeddings and rerank through a real daemon and real workers on tiny random models."""

from __future__ import annotations

import concurrent.futures
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests.clients.conftest import LIMIT_S, eventually, served
from tests.clients.test_cli import edged
from tests.models import UnavailableError, tiny

MODELS_TOML = """
[server]
listen = ["127.0.0.1:{{port}}"]

[models.words]
gguf = "file:{embedding}"
load = "startup"
queue = 256

[models.decoder]
gguf = "file:{last}"
context = 2048

[models.judge]
gguf = "file:{rerank}"

[models.yes-no]
gguf = "file:{rerank_last}"

[models.chat]
gguf = "file:{chat}"
context = 512
"""
TEXTS = ["A cat sat here.", "Prices rose again.", "x", "many words and many more " * 20]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        files = {
            "embedding": tiny("embedding"),
            "last": tiny("embedding-last"),
            "rerank": tiny("rerank"),
            "rerank_last": tiny("rerank-last"),
            "chat": tiny("plain"),
        }
    except UnavailableError as error:
        pytest.skip(str(error))
    with served(tmp_path_factory.mktemp("embeddings"), MODELS_TOML.format(**files)) as url:
        yield url


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=LIMIT_S, trust_env=False) as client:
        yield client


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=LIMIT_S, http_client=http
    ) as client:
        yield client


def rows(reply: openai.types.CreateEmbeddingResponse) -> np.ndarray[Any, Any]:
    assert [each.index for each in reply.data] == list(range(len(reply.data)))
    return np.array([each.embedding for each in reply.data])


@pytest.mark.parametrize("model", ["words", "decoder"])
def test_floats_and_base64_are_the_same_vectors(sdk: openai.OpenAI, model: str) -> None:
    plain = sdk.embeddings.create(model=model, input=TEXTS, encoding_format="float")
    coded = sdk.embeddings.create(model=model, input=TEXTS)  # the SDK asks for base64 by itself
    assert rows(plain).shape == (len(TEXTS), 64)
    assert np.abs(rows(plain) - rows(coded)).max() < 1e-6
    assert np.linalg.norm(rows(plain), axis=1) == pytest.approx(1, abs=1e-6)
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > len(TEXTS)
    assert plain.model == model
    openai.types.CreateEmbeddingResponse.model_validate(plain.model_dump(), strict=True)


def test_token_ids_are_the_same_input(sdk: openai.OpenAI, http: httpx.Client) -> None:
    body = {"model": "words", "content": TEXTS[0], "add_special": True}
    tokens = http.post("/tokenize", json=body).json()["tokens"]
    as_text = rows(sdk.embeddings.create(model="words", input=TEXTS[0]))
    as_tokens = rows(sdk.embeddings.create(model="words", input=tokens))
    as_lists = rows(sdk.embeddings.create(model="words", input=[tokens, tokens]))
    assert np.abs(as_text - as_tokens).max() < 1e-6
    assert np.abs(as_lists - as_text).max() < 5e-3


def test_dimensions_are_the_first_ones(sdk: openai.OpenAI) -> None:
    whole = rows(sdk.embeddings.create(model="words", input=TEXTS))[:, :16]
    short = rows(sdk.embeddings.create(model="words", input=TEXTS, dimensions=16))
    assert np.abs(short - whole / np.linalg.norm(whole, axis=1, keepdims=True)).max() < 1e-5
    with pytest.raises(openai.BadRequestError, match="have 64") as caught:
        sdk.embeddings.create(model="words", input="a", dimensions=65)
    assert caught.value.param == "dimensions"


def test_too_long_input_names_its_place(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context length is 512 tokens") as caught:
        sdk.embeddings.create(model="words", input=["a", "word " * 600])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input[1]")


def test_many_requests_at_once_are_all_answered(sdk: openai.OpenAI) -> None:
    texts = [f"text number {i} of many" for i in range(200)]
    expected = rows(sdk.embeddings.create(model="words", input=texts))
    with concurrent.futures.ThreadPoolExecutor(64) as threads:
        replies = list(
            threads.map(lambda text: sdk.embeddings.create(model="words", input=text), texts)
        )
    found = np.concatenate([rows(reply) for reply in replies])
    assert np.abs(found - expected).max() < 5e-3


def test_most_inputs_of_one_request(sdk: openai.OpenAI) -> None:
    found = rows(sdk.embeddings.create(model="words", input=[f"n {i}" for i in range(2048)]))
    assert found.shape == (2048, 64)
    assert len({tuple(row) for row in found.round(4)}) > 1500


@pytest.mark.parametrize("model", ["judge", "yes-no"])
def test_documents_are_sorted_by_a_score_from_0_to_1(http: httpx.Client, model: str) -> None:
    body = {"model": model, "query": "Where is the cat?", "documents": TEXTS}
    reply = http.post("/v1/rerank", json={**body, "return_documents": True})
    assert reply.status_code == 200, reply.text
    results = reply.json()["results"]
    scores = [each["relevance_score"] for each in results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert len(set(scores)) == len(TEXTS)
    assert sorted(each["index"] for each in results) == list(range(len(TEXTS)))
    assert all(each["document"]["text"] == TEXTS[each["index"]] for each in results)
    single = http.post("/v2/rerank", json={**body, "documents": [TEXTS[2]]}).json()["results"][0]
    among = next(each for each in results if each["index"] == 2)
    assert single["relevance_score"] == pytest.approx(among["relevance_score"], abs=5e-3)


def test_wrong_kind_is_told_before_anything_is_loaded(http: httpx.Client) -> None:
    conversation = [{"role": "user", "content": "hi"}]
    for path, body, fits in (
        ("/v1/embeddings", {"model": "chat", "input": "a"}, "/v1/chat/completions"),
        ("/v1/rerank", {"model": "chat", "query": "q", "documents": ["d"]}, "/v1/completions"),
        ("/v1/rerank", {"model": "words", "query": "q", "documents": ["d"]}, "/v1/embeddings"),
        ("/v1/embeddings", {"model": "judge", "input": "a"}, "/v1/rerank"),
        ("/v1/chat/completions", {"model": "words", "messages": conversation}, "/v1/embeddings"),
        ("/v1/completions", {"model": "judge", "prompt": "a"}, "/v1/rerank"),
        ("/v1/responses", {"model": "words", "input": "a"}, "/v1/embeddings"),
        ("/apply-template", {"model": "words", "messages": conversation}, "/v1/embeddings"),
    ):
        reply = http.post(path, json=body)
        assert reply.status_code == 400, (path, reply.text)
        error = reply.json()["error"]
        assert (error["code"], error["param"]) == ("wrong_model_kind", "model"), path
        assert fits in error["message"]
    states = {each["id"]: each["edged"]["state"] for each in http.get("/v1/models").json()["data"]}
    assert states["chat"] == "stopped"


def test_list_of_models_tells_what_each_can(http: httpx.Client) -> None:
    models = {each["id"]: each["edged"] for each in http.get("/v1/models").json()["data"]}
    found = {name: edged["capabilities"] for name, edged in models.items()}
    assert found == {
        "words": ["embeddings"],
        "decoder": ["embeddings"],
        "judge": ["rerank"],
        "yes-no": ["rerank"],
        "chat": ["chat", "completions"],
    }
    assert models["words"]["context"] == 512


def test_command_line_knows_which_models_chat(url: str) -> None:
    listed = edged("models", EDGED_URL=url)
    assert re.search(r"^words +embeddings +ready", listed.stdout, re.MULTILINE), listed
    assert re.search(r"^judge +rerank ", listed.stdout, re.MULTILINE)
    asked = edged("ask", "hi", EDGED_URL=url)  # the first model that can
    assert (asked.returncode, bool(asked.stdout.strip())) == (0, True), asked.stderr
    refused = edged("ask", "words", "hi", EDGED_URL=url)
    assert refused.returncode == 1
    assert "/v1/embeddings" in refused.stderr
    assert edged("status", EDGED_URL=url).returncode == 0


def test_client_that_leaves_frees_its_place(http: httpx.Client) -> None:
    long = {"model": "decoder", "input": ["word " * 1500] * 200}
    assert http.post("/v1/embeddings", json=long | {"input": "warm"}).status_code == 200
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/embeddings", json=long, timeout=1.0)

    def idle() -> bool:
        models = http.get("/status").json()["models"]
        return all(each["open"] == 0 for each in models if each["name"] == "decoder")

    assert eventually(idle)
    assert http.post("/v1/embeddings", json=long | {"input": "still"}).status_code == 200
