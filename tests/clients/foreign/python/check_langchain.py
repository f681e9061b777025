"""langchain-openai, held against LangChain's own standard suites (`langchain-tests`).

What a suite cannot ask of this model is switched off by the suite's own properties, with a reason.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

from appliance import CALLER, EMBEDDER, GUIDE, KEY, LIMIT_S, V1

CONNECTION: dict[str, Any] = {
    "base_url": V1,
    "api_key": KEY,
    "max_retries": 0,
    "timeout": LIMIT_S,
}


class Standard(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return CONNECTION | {"model": CALLER, "max_tokens": 600, "stream_usage": True}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return GUIDE


class CheckChat(Standard):
    """Over /v1/chat/completions."""


class CheckResponses(Standard):
    """Over /v1/responses."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"use_responses_api": True}


class CheckEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        # Without it, LangChain splits long texts by OpenAI's vocabulary.
        return CONNECTION | {"model": EMBEDDER, "check_embedding_ctx_length": False}


def check_text_completion() -> None:
    model = OpenAI(**CONNECTION, model=GUIDE, max_tokens=5)
    assert model.invoke("edged is")
    assert "".join(model.stream("edged is"))


def check_words() -> None:
    model = ChatOpenAI(**CONNECTION, model=GUIDE)
    assert "edged" in model.invoke("What is edged?").content


def check_errors_are_the_sdks_own() -> None:
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.NotFoundError):
        ChatOpenAI(**CONNECTION, model="nobody").invoke("hi")
