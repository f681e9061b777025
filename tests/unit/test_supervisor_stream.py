"""A request's unread events: every character in order, one end, bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edged.protocol import Delta, Failed, Finish, Started
from edged.supervisor.stream import Stream

pieces = st.lists(
    st.tuples(st.booleans(), st.text(max_size=30), st.booleans()), min_size=1, max_size=300
)


@given(pieces)
async def test_every_character_arrives_in_order(acts: list[tuple[bool, str, bool]]) -> None:
    """Each act is a piece of thinking (first) or of the answer, and whether the reader reads."""
    stream = Stream(1)
    stream.put(Started(1, 1))
    got = [await stream.next()]
    acts = sorted(acts, key=lambda act: not act[0])  # thinking comes before the answer
    for is_reasoning, text, reads in acts:
        stream.put(Delta(1, reasoning=text) if is_reasoning else Delta(1, content=text))
        if reads:
            got.append(await stream.next())
    stream.put(Finish(1, "stop"))
    while not isinstance(got[-1], Finish):
        got.append(await stream.next())
    deltas = [event for event in got if isinstance(event, Delta)]
    assert "".join(d.content for d in deltas) == "".join(t for r, t, _ in acts if not r)
    assert "".join(d.reasoning for d in deltas) == "".join(t for r, t, _ in acts if r)
    assert sum(d.n_tokens for d in deltas) == len(acts)


async def test_reader_that_keeps_up_sees_every_piece() -> None:
    stream = Stream(1)
    for n in range(1000):
        stream.put(Delta(1, content=str(n)))
        assert await stream.next() == Delta(1, content=str(n))


async def test_answer_after_thinking_is_not_put_before_it() -> None:
    stream = Stream(1)
    for _ in range(100):
        stream.put(Delta(1, content="a"))
        stream.put(Delta(1, reasoning="r"))
    stream.put(Finish(1, "stop"))
    order = ""
    while not isinstance(event := await stream.next(), Finish):
        assert isinstance(event, Delta)
        order += event.reasoning + event.content
    assert order == "ar" * 100


async def test_nothing_follows_the_end() -> None:
    stream = Stream(1)
    stream.put(Finish(1, "stop"))
    stream.put(Delta(1, content="late"))
    stream.put(Failed(1, "worker_crashed", "late"))
    assert isinstance(await stream.next(), Finish)
    assert not stream._events


async def test_reader_far_behind_loses_the_answer_and_not_the_memory() -> None:
    stream = Stream(1)
    for _ in range(100_000):
        stream.put(Delta(1, content="x" * 1000))
    assert stream.ended
    assert sum(len(e.content) for e in stream._events if isinstance(e, Delta)) < 5 << 20
    assert isinstance(stream.last, Failed)


async def test_endless_empty_pieces_are_bounded_too() -> None:
    stream = Stream(1)
    for _ in range(200_000):
        stream.put(Delta(1))
    assert len(stream._events) < 100


async def test_reader_who_catches_up_may_read_on_for_ever() -> None:
    stream = Stream(1)
    for _ in range(50):
        for _ in range(1000):
            stream.put(Delta(1, content="x" * 1000))
        while stream._events:
            await stream.next()
    assert not stream.ended
