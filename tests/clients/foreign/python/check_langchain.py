"""langchain-openai, held against LangChain's own standard suites (`langchain-tests`).

Features that this model has not (images, sounds, PDF) are off by the suite's own properties.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

from appliance import CALLER, EMBEDDER, GUIDE, KEY, LIMIT_S, PLAYED, V1

CONNECTION: dict[str, Any] = {
    "base_url": V1,
    "api_key": KEY,
    "max_retries": 0,
    "timeout": LIMIT_S,
}


#: What asks whether the model understands; random weights do not. Asked of the played model.
UNDERSTANDING = {
    "test_agent_loop",
    "test_bind_runnables_as_tools",
    "test_json_mode",
    "test_structured_output_pydantic_2_v1",
    "test_tool_calling",
    "test_tool_calling_async",
    "test_unicode_tool_call_integration",
}


class Standard(ChatModelIntegrationTests):
    model_name: str

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return CONNECTION | {"model": self.model_name, "max_tokens": 600, "stream_usage": True}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return GUIDE


class CheckChat(Standard):
    """Random weights in the real engine, over /v1/chat/completions."""

    model_name = CALLER
    left_out = UNDERSTANDING


class CheckChatPlayed(Standard):
    """The whole suite, over /v1/chat/completions of a daemon behind the daemon (`upstream`)."""

    model_name = PLAYED


class Responses(Standard):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return super().chat_model_params | {"use_responses_api": True}


class CheckResponses(Responses):
    """Random weights in the real engine, over /v1/responses."""

    model_name = CALLER
    left_out = UNDERSTANDING


class CheckResponsesPlayed(Responses):
    """The whole suite, over /v1/responses of a daemon behind the daemon."""

    model_name = PLAYED


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
