"""openai-agents: runs, tools, hand-offs and typed output, over chat completions and responses."""

from __future__ import annotations

from typing import Literal

import openai
import pytest
from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from agents.items import ToolCallItem, ToolCallOutputItem
from pydantic import BaseModel

from appliance import CALLER, GUIDE, KEY, LIMIT_S, V1

set_tracing_disabled(True)
DIALECTS = ["chat", "responses"]
SHORT = ModelSettings(max_tokens=100, include_usage=True)


class Forecast(BaseModel):
    city: Literal["Berlin", "Paris"]
    sunny: bool


@function_tool
def forecast(city: Literal["Berlin", "Paris"]) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


def model(name: str, dialect: str) -> Model:
    client = openai.AsyncOpenAI(base_url=V1, api_key=KEY, max_retries=0, timeout=LIMIT_S)
    kind = OpenAIChatCompletionsModel if dialect == "chat" else OpenAIResponsesModel
    return kind(name, client)


@pytest.mark.parametrize("dialect", DIALECTS)
async def check_answer_has_words_and_usage(dialect: str) -> None:
    agent = Agent(name="guide", instructions="Be short.", model=model(GUIDE, dialect))
    result = await Runner.run(agent, "What is edged?")
    assert "edged" in result.final_output
    assert result.context_wrapper.usage.output_tokens > 0


@pytest.mark.parametrize("dialect", DIALECTS)
async def check_stream(dialect: str) -> None:
    agent = Agent(name="guide", model=model(GUIDE, dialect), model_settings=SHORT)
    result = Runner.run_streamed(agent, "What is edged?")
    kinds = {event.type async for event in result.stream_events()}
    assert {"raw_response_event", "run_item_stream_event"} <= kinds
    assert result.final_output
    assert result.context_wrapper.usage.output_tokens > 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
async def check_tool_is_called_and_answered(dialect: str, streamed: bool) -> None:
    agent = Agent(
        name="caller",
        model=model(CALLER, dialect),
        tools=[forecast],
        model_settings=ModelSettings(tool_choice="required"),
        reset_tool_choice=True,
    )
    if streamed:
        result = Runner.run_streamed(agent, "hi")
        async for _ in result.stream_events():
            pass
    else:
        result = await Runner.run(agent, "hi")
    assert any(isinstance(item, ToolCallItem) for item in result.new_items)
    outputs = [item.output for item in result.new_items if isinstance(item, ToolCallOutputItem)]
    assert outputs
    assert set(outputs) <= {"sunny in Berlin", "sunny in Paris"}
    assert isinstance(result.final_output, str)


@pytest.mark.parametrize("dialect", DIALECTS)
async def check_typed_output(dialect: str) -> None:
    agent = Agent(
        name="caller", model=model(CALLER, dialect), output_type=Forecast, model_settings=SHORT
    )
    result = await Runner.run(agent, "hi")
    assert isinstance(result.final_output, Forecast)


async def check_handoff() -> None:
    guide = Agent(name="guide", model=model(GUIDE, "chat"), model_settings=SHORT)
    desk = Agent(
        name="desk",
        model=model(CALLER, "chat"),
        handoffs=[guide],
        model_settings=ModelSettings(tool_choice="required", max_tokens=100),
    )
    result = await Runner.run(desk, "What is edged?")
    assert result.last_agent.name == "guide"


async def check_session() -> None:
    agent = Agent(name="guide", model=model(GUIDE, "responses"), model_settings=SHORT)
    session = SQLiteSession("one")
    first = await Runner.run(agent, "What is edged?", session=session)
    second = await Runner.run(agent, "Where are the logs?", session=session)
    usage = second.context_wrapper.usage
    assert usage.input_tokens > first.context_wrapper.usage.input_tokens


async def check_errors_are_the_sdks_own() -> None:
    with pytest.raises(openai.NotFoundError):
        await Runner.run(Agent(name="x", model=model("nobody", "chat")), "hi")
