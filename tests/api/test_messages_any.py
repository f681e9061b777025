"""Any body at all, at Anthropic's routes and those of tokens: an answer or a clear error."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.protocol import (
    Delta,
    Detokenize,
    Detokenized,
    Event,
    Finish,
    Generate,
    Render,
    Rendered,
    Started,
    Tokenize,
    Tokenized,
)
from tests.api.conftest import PlayedBox
from tests.api.messages_forms import IMAGE, seeing

CACHE = {"type": "ephemeral", "ttl": "5m"}
MESSAGES = {
    "model": "guide",
    "max_tokens": 2000,
    "stream": True,
    "system": [{"type": "text", "text": "S", "cache_control": CACHE}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "edged"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": [1]}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "text", "text": "b"}],
                    "is_error": True,
                },
                {"type": "document", "title": "T", "source": {"type": "text", "data": "d"}},
                IMAGE,
            ],
        },
        {"role": "assistant", "content": "So"},
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "low"},
    "output_format": None,
    "metadata": {"user_id": "u"},
    "context_management": {"edits": []},
    "stop_sequences": ["x"],
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
}
CHAT = {
    "model": "guide",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "So"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "chat_template_kwargs": {"a": 1},
    "add_generation_prompt": False,
    "continue_final_message": True,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": MESSAGES,
    "/tokenize": {"model": "guide", "content": "a", "with_pieces": True},
    "/detokenize": {"model": "guide", "tokens": [1, 2]},
    "/apply-template": CHAT,
    "/v1/chat/completions/input_tokens": CHAT,
}

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["text", "image", "tool_use", "enabled", "object", "user", "guide", ""])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "content", "source", "name", "role"])
            | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container inside with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


@st.composite
def damaged(draw: st.DrawFn, good: dict[str, Any]) -> dict[str, Any]:
    """Return a good body with a few values replaced or taken out."""
    body = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(list(places(body)) or [(body, "model")]))
        if draw(st.booleans()):
            container[key] = draw(VALUES)
        else:
            del container[key]
        if not body:
            break
    return body


async def test_bodies_are_good_before_they_are_damaged(
    box: PlayedBox, http: httpx.AsyncClient
) -> None:
    box.scripts = dict.fromkeys(box.scripts, any_answer)
    box.plan.models["guide"] = seeing(box.plan.models["guide"])
    for path, body in BODIES.items():
        response = await http.post(path, json=body)
        assert response.status_code == 200, response.text


async def any_answer(request: Any) -> AsyncGenerator[Event, None]:
    match request:
        case Generate():
            yield Started(request.id, 1)
            yield Delta(request.id, content="a")
            yield Finish(request.id, "stop")
        case Render():
            yield Rendered(request.id, "a", 1)
        case Tokenize():
            yield Tokenized(request.id, [1], [b"\xff"])
        case Detokenize():
            yield Detokenized(request.id, "a")


@pytest.mark.parametrize("path", BODIES)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
async def test_any_body_is_answered_or_refused_in_shape(
    box: PlayedBox, http: httpx.AsyncClient, path: str, data: st.DataObject
) -> None:
    box.scripts = dict.fromkeys(box.scripts, any_answer)
    box.plan.models["guide"] = seeing(box.plan.models["guide"])
    body = data.draw(damaged(BODIES[path]))
    response = await http.post(path, json=body)
    assert response.status_code in {200, 400, 404}, response.text
    assert box.open == 0
    if response.status_code == 200:
        assert response.content
        return
    error = response.json()["error"]
    assert error["message"]
    anthropic = path.startswith("/v1/messages")
    assert error.keys() == {"type", "message", "details" if anthropic else "code"} | (
        set() if anthropic else {"param"}
    )
    assert response.json().keys() == ({"type", "error", "request_id"} if anthropic else {"error"})
