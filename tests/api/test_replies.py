"""Chunks are put together from encoded pieces: they are JSON and lose nothing of any text."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.api.events import Choice, Reply
from edged.api.openai.chat import ChatReply
from edged.api.openai.completions import TextReply
from edged.config import Model
from edged.protocol import Delta, Finish, Timings, Usage
from tests.api.conftest import plan_of

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
deltas = st.lists(st.builds(Delta, st.just(1), content=text, reasoning=text), max_size=8)
FINISH = Finish(1, "length", Usage(5, 3, 2, 1), Timings(1.0, 0.0, 3.0))


def parsed(stream: bytes) -> list[dict[str, object]]:
    *events, end, nothing = stream.split(b"\n\n")
    assert (end, nothing) == (b"data: [DONE]", b"")
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return [msgspec.json.decode(event.removeprefix(b"data: ")) for event in events]


def stream_of(reply: Reply, pieces: list[Delta]) -> bytes:
    middle = [reply.piece(0, piece) for piece in pieces]
    end = [reply.closing(0, FINISH), reply.ending([FINISH])]
    return b"".join([reply.opening(5), *middle, *end])


@given(name=text.filter(bool), pieces=deltas, with_usage=st.booleans())
def test_chat_stream_carries_every_character(
    name: str, pieces: list[Delta], with_usage: bool
) -> None:
    plan = plan_of(Model(name)).models[name]
    chunks = parsed(stream_of(ChatReply(plan, with_usage=with_usage), pieces))
    assert {chunk["model"] for chunk in chunks} == {name}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]  # type: ignore[attr-defined]
    content = "".join(choice["delta"].get("content", "") for choice in choices)
    reasoning = "".join(choice["delta"].get("reasoning_content", "") for choice in choices)
    assert content == "".join(piece.content for piece in pieces)
    assert reasoning == "".join(piece.reasoning for piece in pieces)
    assert choices[-1]["finish_reason"] == "length"
    assert ("usage" in chunks[-1]) == with_usage


@given(name=text.filter(bool), pieces=deltas, with_usage=st.booleans())
def test_text_stream_carries_every_character(
    name: str, pieces: list[Delta], with_usage: bool
) -> None:
    plan = plan_of(Model(name)).models[name]
    chunks = parsed(stream_of(TextReply(plan, with_usage=with_usage), pieces))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]  # type: ignore[attr-defined]
    found = "".join(choice["text"] for choice in choices)
    assert found == "".join(piece.reasoning + piece.content for piece in pieces)
    assert choices[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("kind", [ChatReply, TextReply])
def test_timings_divide_by_nothing(kind: type[ChatReply | TextReply]) -> None:
    plan = plan_of(Model("guide")).models["guide"]
    empty = Finish(1, "stop")
    whole = msgspec.json.decode(kind(plan, with_usage=False).whole([Choice.of([], empty)]))
    assert whole["timings"]["predicted_per_second"] == 0.0
    assert whole["timings"]["prompt_per_token_ms"] == 0.0
