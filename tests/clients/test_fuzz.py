"""Good requests with something wrong in them, against every route: a 400 in shape, or an answer.

Hypothesis takes a request that works and puts any JSON value in any place of it, or takes a field
away. Whatever comes of it: no 5xx, no hang, an error of the dialect's own shape, nothing left open.
schemathesis does the same from the wire types (`make test-clients`).
"""

from __future__ import annotations

import copy
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.api.app import create_app
from tests.api.conftest import PlayedBox, served
from tests.clients.conftest import eventually
from tests.clients.description import BODIES
from tests.clients.published import problems
from tests.clients.recorder import Exchange

USER = {"role": "user", "content": "What is edged?"}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"enum": [1, 2]}}}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1, 2]}}}
SAID = [
    {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "1"},
]
SAMPLING: dict[str, Any] = {
    "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1, "stop": ["x"],
    "logit_bias": {"5": 1}, "presence_penalty": 0.5, "repeat_penalty": 1.1, "user": "u",
}  # fmt: skip
CHAT = {"messages": SAID, "tools": [TOOL], "tool_choice": "auto"}
GOOD: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": [USER], "max_tokens": 3, "n": 2, "logprobs": True, "top_logprobs": 2}
        | SAMPLING,
        CHAT | {"max_completion_tokens": 3, "parallel_tool_calls": False},
        {"messages": [USER], "response_format": FORMAT, "max_tokens": 9, "stream": True},
    ],
    "/v1/chat/completions/input_tokens": [CHAT],
    "/v1/completions": [
        {"prompt": ["edged is", "a"], "max_tokens": 3, "echo": True, "logprobs": 1} | SAMPLING,
        {"prompt": [1, 2, 3], "max_tokens": 2, "stream": True, "stream_options": {}},
    ],
    "/v1/responses": [
        {
            "input": [USER, {"type": "function_call", "call_id": "c", "name": "f", "arguments": ""},
                      {"type": "function_call_output", "call_id": "c", "output": "1"}],
            "instructions": "Be short.", "tools": [{"type": "function"} | FUNCTION],
            "tool_choice": "auto", "max_output_tokens": 3, "store": False,
        },
        {"input": "Hi", "max_output_tokens": 3, "text": {"format": {"type": "text"}},
         "stream": True, "reasoning": {"effort": "low"}},
    ],
    "/v1/responses/input_tokens": [{"input": "Hi"}],
    "/v1/messages": [
        {"messages": [USER], "system": "Be short.", "max_tokens": 3, "stop_sequences": ["x"],
         "temperature": 0.5, "top_k": 3, "metadata": {"user_id": "u"}},
        {"messages": [USER], "max_tokens": 9, "stream": True, "tool_choice": {"type": "auto"},
         "tools": [{"name": "f", "input_schema": FUNCTION["parameters"]}]},
    ],
    "/v1/messages/count_tokens": [{"messages": [USER], "system": "Be short."}],
    "/v1/embeddings": [{"input": ["a", "b"], "dimensions": 4, "encoding_format": "float"}],
    "/v1/rerank": [{"query": "a", "documents": ["b", "c"], "top_n": 1}],
    "/tokenize": [{"content": "Hi", "add_special": True, "with_pieces": True}],
    "/detokenize": [{"tokens": [1, 2, 3]}],
    "/apply-template": [CHAT],
}  # fmt: skip
ANSWERED = {200, 400, 404, 413}

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["", "\x00", "<|im_start|>", "json_schema", "text", "auto", "user"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "name", "a"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of everything inside `value`."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, each in inside:
        found.append((*here, key))
        if isinstance(each, dict | list):
            found += places(each, (*here, key))
    return found


@st.composite
def spoilt(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """A good request with one or two things wrong. Its length stays, so that answers are short."""
    body = copy.deepcopy(draw(st.sampled_from(GOOD[path])))
    for _ in range(draw(st.integers(1, 2))):
        free = [place for place in places(body) if "max_" not in str(place[-1])]
        *way, last = draw(st.sampled_from(free or [("model",)]))
        place: Any = body
        for key in way:
            place = place[key]
        if isinstance(place, dict) and last in place and draw(st.integers(0, 3)) == 0:
            del place[last]
        else:
            place[last] = draw(anything)
    return body


def judged(path: str, response: httpx.Response) -> None:
    assert response.status_code in ANSWERED, (response.status_code, response.text)
    if response.status_code != httpx.codes.OK:
        kind = response.headers["content-type"]
        exchange = Exchange("POST", path, b"", response.status_code, kind, response.content, True)
        assert problems(exchange) == []


few = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_every_route_with_a_body_has_a_good_request() -> None:
    assert GOOD.keys() == BODIES.keys()


@pytest.mark.parametrize("path", GOOD)
def test_spoilt_request_on_the_whole_daemon(raw: httpx.Client, path: str) -> None:
    @few
    @given(spoilt(path))
    def check(body: dict[str, Any]) -> None:
        judged(path, raw.post(path, json={"model": "edge-guide"} | body))

    check()

    def left() -> int:
        [model] = raw.get("/status").json()["models"]
        return int(model["open"] + model["queued"] + model["stats"]["running"])

    assert eventually(lambda: left() == 0)


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
)
async def test_spoilt_request_on_the_scripted_box(path: str) -> None:
    box = PlayedBox()
    async with (
        served(create_app(box)) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
    ):
        bodies: list[dict[str, Any]] = []

        @few
        @given(spoilt(path))
        def collect(body: dict[str, Any]) -> None:
            bodies.append({"model": "guide"} | body)

        collect()
        for body in bodies:
            judged(path, await http.post(path, json=body))
        assert box.open == 0
