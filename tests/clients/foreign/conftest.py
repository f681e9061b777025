"""The daemon for foreign clients: a model with words, one that calls tools, vectors and ranks."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import served
from tests.models import UnavailableError, llama_cpp_source, tiny
from tests.models.cache import build_once
from tests.models.tiny import write_tiny
from tests.models.vocabulary import small

TEMPLATE = "vendor/llama.cpp/models/templates/Qwen-Qwen2.5-7B-Instruct.jinja"

MODELS_TOML = """
[server]
listen = ["127.0.0.1:{{port}}"]

[defaults]
parallel = 8

[models.edge-guide]
gguf = "builtin:edge-guide"
context = 1024
load = "startup"
sampling = {{{{ temperature = 0.0 }}}}

# Random weights: what it says is noise, unless a grammar holds it. The biases let strings,
# objects, and an answer that may end, end soon; the seed makes runs alike.
[models.tool-caller]
gguf = "file:{caller}"
context = 4096
load = "startup"
sampling = {{{{ seed = 7, logit_bias = {{{{ {end} = 7, {quote} = 8, {brace} = 8 }}}} }}}}

[models.played]
upstream = "{played}/v1"

[models.embedder]
gguf = "file:{embedder}"

[models.reranker]
gguf = "file:{reranker}"
"""

PLAYED_TOML = """
[server]
listen = ["127.0.0.1:{{port}}"]

[models.played]
gguf = "file:{plain}"
load = "startup"
"""


def tool_caller() -> Path:
    """Return a random model whose template knows tools: Qwen2.5's, as llama.cpp's source has it."""
    template = (llama_cpp_source() / TEMPLATE).read_text()
    words = dataclasses.replace(small(), chat_template=template)
    return build_once(
        f"tiny-tool-caller.v1-{words.digest()}.gguf",
        lambda path: write_tiny(path, "qwen2", words=words),
    )


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of a daemon whose model understands LangChain's questions."""
    with served(
        tmp_path_factory.mktemp("played"),
        PLAYED_TOML.format(plain=tiny("plain")),
        [sys.executable, "-m", "tests.clients.foreign.played_model"],
    ) as url:
        yield url


@pytest.fixture(scope="session")
def appliance(tmp_path_factory: pytest.TempPathFactory, played: str) -> Iterator[str]:
    """Give the URL of the daemon."""
    try:
        toml = MODELS_TOML.format(
            caller=tool_caller(),
            end=small().tokens.index(small().eos),
            quote=small().tokens.index('"'),
            brace=small().tokens.index("}"),
            embedder=tiny("embedding"),
            reranker=tiny("rerank"),
            played=played,
        )
    except UnavailableError as error:
        pytest.skip(str(error))
    with served(tmp_path_factory.mktemp("appliance"), toml) as url:
        yield url
