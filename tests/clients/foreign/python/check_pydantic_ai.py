"""pydantic-ai: agents over chat completions, responses and Anthropic messages."""

from __future__ import annotations

from typing import Literal

import openai
import pytest
from anthropic import AsyncAnthropic
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, ToolOutput, UsageLimits
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from appliance import CALLER, GUIDE, KEY, LIMIT_S, URL, V1

LIMITS = UsageLimits(request_limit=40)
DIALECTS = ["chat", "responses", "messages"]


class Forecast(BaseModel):
    city: Literal["Berlin", "Paris"]
    sunny: bool


def model(name: str, dialect: str = "chat") -> Model:
    if dialect == "messages":
        sdk = AsyncAnthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=LIMIT_S)
        return AnthropicModel(name, provider=AnthropicProvider(anthropic_client=sdk))
    client = openai.AsyncOpenAI(base_url=V1, api_key=KEY, max_retries=0, timeout=LIMIT_S)
    kind = OpenAIChatModel if dialect == "chat" else OpenAIResponsesModel
    return kind(name, provider=OpenAIProvider(openai_client=client))


@pytest.mark.parametrize("dialect", DIALECTS)
async def check_answer_has_words_and_usage(dialect: str) -> None:
    result = await Agent(model(GUIDE, dialect)).run("What is edged?")
    assert "edged" in result.output
    assert result.usage.output_tokens > 0 < result.usage.input_tokens


@pytest.mark.parametrize("dialect", DIALECTS)
async def check_stream(dialect: str) -> None:
    async with Agent(model(GUIDE, dialect)).run_stream("What is edged?") as result:
        pieces = [piece async for piece in result.stream_text(delta=True)]
    assert "edged" in "".join(pieces)


async def check_conversation() -> None:
    agent = Agent(model(GUIDE), instructions="Be short.")
    first = await agent.run("What is edged?")
    second = await agent.run("Where are the logs?", message_history=first.all_messages())
    assert second.usage.input_tokens > first.usage.input_tokens


@pytest.mark.parametrize("dialect", DIALECTS)
async def check_tools_are_called_until_the_output_is(dialect: str) -> None:
    """The output is a tool among tools: noise calls the others some times before."""
    called = []
    agent = Agent(model(CALLER, dialect), output_type=ToolOutput(Forecast), retries=5)

    @agent.tool_plain
    def forecast(city: Literal["Berlin", "Paris"]) -> str:
        """Tell the weather."""
        called.append(city)
        return "sunny"

    for _ in range(5):
        result = await agent.run("hi", usage_limits=LIMITS)
        assert isinstance(result.output, Forecast)
        if called:
            break
    assert set(called) <= {"Berlin", "Paris"}


@pytest.mark.parametrize("dialect", DIALECTS[:2])
async def check_native_structured_output(dialect: str) -> None:
    agent = Agent(model(CALLER, dialect), output_type=NativeOutput(Forecast))
    assert isinstance((await agent.run("hi")).output, Forecast)


async def check_structured_stream() -> None:
    agent = Agent(model(CALLER), output_type=ToolOutput(Forecast))
    async with agent.run_stream("hi") as result:
        assert isinstance(await result.get_output(), Forecast)


async def check_errors_are_mapped() -> None:
    with pytest.raises(ModelHTTPError) as missing:
        await Agent(model("nobody")).run("hi")
    assert missing.value.status_code == 404
    with pytest.raises(ModelHTTPError) as bad:
        await Agent(model(GUIDE), model_settings={"temperature": 9.0}).run("hi")
    assert bad.value.status_code == 400
