"""Tokens, templates and counts of edge-guide: the JSON of llama-server, where that is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import edged.store
from tests.clients.conftest import CONTEXT
from tests.llamacpp.peer import llama_server

GUIDE = Path(edged.store.__file__).parent / "builtin" / "edge-guide.gguf"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Get it", "parameters": CITY},
}
ANTHROPIC_TOOL = {"name": "get_weather", "description": "Get it", "input_schema": CITY}
QUESTION = [{"role": "user", "content": "What is edged?"}]
BEGUN = [*QUESTION, {"role": "assistant", "content": "edged is"}]
CALLED = [
    {"role": "user", "content": "Is it raining?"},
    {
        "role": "assistant",
        "content": [
            {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Oslo"}}
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "yes"}]},
]

TEXTS = [
    "",
    "edged",
    "Hällo, wörld 🙂\n\n日本",
    "a" * 300,
    "\x00\u2028",
    "<|im_end|>x<|im_start|>",
    " lead",
    "  two",
    "\t\ttabs\r\n",
    '{"a": 1}',
]
WAYS: list[dict[str, Any]] = [
    {},
    {"with_pieces": True},
    {"add_special": True},
    {"parse_special": False},
    {"add_special": True, "parse_special": False, "with_pieces": True},
]
CHATS: list[dict[str, Any]] = [
    {},
    {"messages": [{"role": "system", "content": "Be brief."}, *QUESTION]},
    {"tools": [TOOL]},
    {"chat_template_kwargs": {"enable_thinking": False}},
]
ENDS: list[dict[str, Any]] = [
    {"add_generation_prompt": False},
    {"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": False},
]
MESSAGES: list[dict[str, Any]] = [
    {},
    {"system": "Be brief."},
    {"tools": [ANTHROPIC_TOOL]},
    {"tools": [ANTHROPIC_TOOL], "messages": CALLED},
]


@pytest.fixture(scope="module")
def peer() -> Iterator[httpx.Client]:
    with llama_server(GUIDE, "-c", str(CONTEXT)) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "bodies"),
    [
        ("/tokenize", [{"content": text} | way for text in TEXTS for way in WAYS]),
        ("/detokenize", [{"tokens": tokens} for tokens in ([], [0], [3, 2, 1], list(range(300)))]),
        ("/apply-template", [{"messages": QUESTION} | more for more in (*CHATS, *ENDS)]),
        (
            "/v1/chat/completions/input_tokens",
            [{"model": "edge-guide", "messages": QUESTION} | more for more in CHATS],
        ),
        (
            "/v1/messages/count_tokens",
            [{"model": "edge-guide", "messages": QUESTION} | more for more in MESSAGES],
        ),
    ],
)
def test_answers_are_llama_servers(
    raw: httpx.Client, peer: httpx.Client, path: str, bodies: list[dict[str, Any]]
) -> None:
    for body in bodies:
        mine, theirs = (client.post(path, json=body) for client in (raw, peer))
        assert (mine.status_code, mine.json()) == (theirs.status_code, theirs.json()), body
        assert mine.status_code == 200
