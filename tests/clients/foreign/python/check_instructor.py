"""instructor: structured output by tools, by JSON mode and by JSON schema, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import instructor
import openai
import pytest
from pydantic import BaseModel, Field

from appliance import CALLER, KEY, LIMIT_S, QUESTION, V1

MODES = [
    instructor.Mode.TOOLS,
    instructor.Mode.TOOLS_STRICT,
    instructor.Mode.JSON_SCHEMA,
    instructor.Mode.RESPONSES_TOOLS,
]


class Forecast(BaseModel):
    city: Literal["Berlin", "Paris"]
    days: int = Field(ge=1, le=9)
    sunny: bool


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[instructor.Instructor]:
    with openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0, timeout=LIMIT_S) as sdk:
        yield instructor.from_openai(sdk, mode=request.param)


@pytest.mark.parametrize("client", MODES, indirect=True, ids=str)
def check_object(client: instructor.Instructor) -> None:
    found = client.create(model=CALLER, messages=QUESTION, response_model=Forecast, max_retries=1)
    assert isinstance(found, Forecast)


@pytest.mark.parametrize("client", MODES[:3], indirect=True, ids=str)
def check_partial_objects_while_streaming(client: instructor.Instructor) -> None:
    parts = list(
        client.create_partial(
            model=CALLER, messages=QUESTION, response_model=Forecast, max_retries=1
        )
    )
    Forecast.model_validate(parts[-1].model_dump())


async def check_async() -> None:
    async with openai.AsyncOpenAI(base_url=V1, api_key=KEY, max_retries=0) as sdk:
        client = instructor.from_openai(sdk)
        found = await client.create(model=CALLER, messages=QUESTION, response_model=Forecast)
    assert isinstance(found, Forecast)


@pytest.mark.parametrize("client", MODES[:1], indirect=True, ids=str)
def check_errors_reach_the_program(client: instructor.Instructor) -> None:
    with pytest.raises(Exception, match="nobody") as caught:
        client.create(model="nobody", messages=QUESTION, response_model=Forecast, max_retries=0)
    known = caught.value
    assert isinstance(known, openai.NotFoundError) or "404" in str(known)
