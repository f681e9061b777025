"""Framing: whatever is cut where, the same messages arrive, and nonsense is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.framing import MAX_FRAME_BYTES, FrameError, Frames
from edged.protocol import (
    DEFAULTS,
    Abort,
    Delta,
    Failed,
    Finish,
    Generate,
    Launch,
    LlamaCppLaunch,
    Load,
    LoadFailed,
    Loading,
    Media,
    Messages,
    Ready,
    Sampling,
    Started,
    Stats,
    Step,
    Text,
    Timings,
    ToDaemon,
    Tokens,
    ToWorker,
    Usage,
)

text = st.text(max_size=40)
count = st.integers(0, 2**53)
finite = st.floats(allow_nan=False, allow_infinity=False)

sampling = st.builds(
    Sampling,
    temperature=st.none() | finite,
    top_k=st.none() | count,
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    logit_bias=st.none() | st.dictionaries(count, finite, max_size=3),
    ignore_eos=st.none() | st.booleans(),
)
plain = st.recursive(
    st.none() | st.booleans() | count | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
message = st.dictionaries(text, plain, max_size=3)
prompt = st.one_of(
    st.builds(Text, text),
    st.builds(Tokens, st.lists(count, max_size=5)),
    st.builds(
        Messages,
        st.lists(message, max_size=3),
        tools=st.none() | st.lists(message, max_size=2),
        template_kwargs=message,
    ),
)
launch = st.builds(
    Launch,
    model=text,
    engine=st.sampled_from(["llamacpp", "lmdeploy"]),
    path=text,
    file_id=text,
    context=count,
    parallel=count,
    pool=count,
    llamacpp=st.none() | st.builds(LlamaCppLaunch, threads=count, threads_batch=count),
)
to_worker = st.one_of(
    st.builds(Load, launch),
    st.builds(Abort, count),
    st.builds(
        Generate,
        prompt,
        sampling=sampling,
        max_tokens=st.none() | count,
        stop=st.lists(text, max_size=4),
        group=text,
        id=count,
    ),
)
event = st.one_of(
    st.builds(Started, count, count),
    st.builds(Delta, count, content=text, reasoning=text, n_tokens=count),
    st.builds(
        Finish,
        count,
        st.sampled_from(["stop", "length"]),
        usage=st.builds(Usage, count, count, count, count),
        timings=st.builds(Timings, finite, finite, finite),
    ),
    st.builds(Failed, count, text, text, param=st.none() | text),
)
to_daemon = st.one_of(
    st.builds(Loading, finite),
    st.builds(Ready, text, count, count, text, st.booleans(), count, finite),
    st.builds(LoadFailed, text),
    st.builds(Step, st.lists(event, max_size=5)),
    st.builds(Stats, count, count, count, count, count, count, count, count, finite, count),
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(to_worker, max_size=5), st.lists(st.integers(0, 10_000), max_size=20))
def test_messages_down_arrive_whole_however_they_are_cut(
    messages: list[ToWorker], cuts: list[int]
) -> None:
    sender, receiver = Frames(ToDaemon), Frames(ToWorker)
    data = b"".join(sender.encode(message) for message in messages)
    got = [message for piece in pieces(data, cuts) for message in receiver.feed(piece)]
    assert got == messages


@given(st.lists(to_daemon, max_size=5), st.lists(st.integers(0, 10_000), max_size=20))
def test_messages_up_arrive_whole_however_they_are_cut(
    messages: list[ToDaemon], cuts: list[int]
) -> None:
    sender, receiver = Frames(ToWorker), Frames(ToDaemon)
    data = b"".join(sender.encode(message) for message in messages)
    got = [message for piece in pieces(data, cuts) for message in receiver.feed(piece)]
    assert got == messages


@given(st.binary(max_size=200))
def test_nonsense_is_a_frame_error_and_nothing_else(data: bytes) -> None:
    receiver = Frames(ToDaemon, max_bytes=1000)
    try:
        for _ in receiver.feed(data):
            continue
    except FrameError:
        return


@given(st.binary(min_size=1, max_size=100))
def test_body_that_is_no_message_is_a_frame_error(body: bytes) -> None:
    frame = len(body).to_bytes(4, "little") + b"\xc1" + body[1:]
    with pytest.raises(FrameError, match="not a message"):
        list(Frames(ToDaemon).feed(frame))


def test_message_of_the_other_direction_is_refused() -> None:
    frame = Frames(ToDaemon).encode(Abort(1))
    with pytest.raises(FrameError):
        list(Frames(ToDaemon).feed(frame))


def test_length_beyond_the_limit_is_refused_before_the_body_comes() -> None:
    with pytest.raises(FrameError, match="at most 1000"):
        list(Frames(ToDaemon, max_bytes=1000).feed((1001).to_bytes(4, "little")))
    with pytest.raises(FrameError):
        list(Frames(ToDaemon).feed((MAX_FRAME_BYTES + 1).to_bytes(4, "little")))


def test_frame_just_within_the_limit_is_taken() -> None:
    message = LoadFailed("x" * 500)
    frame = Frames(ToWorker).encode(message)
    assert list(Frames(ToDaemon, max_bytes=len(frame) - 4).feed(frame)) == [message]


@given(sampling, sampling)
def test_what_a_request_says_wins_over_the_models_settings(said: Sampling, own: Sampling) -> None:
    merged = said.over(own)
    for field in Sampling.__struct_fields__:
        value = getattr(said, field)
        assert getattr(merged, field) == (getattr(own, field) if value is None else value)


def test_defaults_leave_only_what_has_no_default_unsaid() -> None:
    silent = {f for f in Sampling.__struct_fields__ if getattr(DEFAULTS, f) is None}
    assert silent == {"seed", "logit_bias"}


@pytest.mark.parametrize("piece", [1 << 16, 1 << 20, 1 << 24])
def test_large_frames_arrive_whole_among_small_ones(piece: int) -> None:
    pixels = bytes(range(256)) * 3 * 4096
    prompt = Messages([], media=[Media("image", pixels, width=1024, height=1024)])
    sent = [Abort(1), Generate(prompt, id=2), Generate(prompt, id=3), Abort(4)]
    down = Frames(ToWorker)
    data = b"".join(Frames(ToDaemon).encode(message) for message in sent)
    found = [m for at in range(0, len(data), piece) for m in down.feed(data[at : at + piece])]
    assert found == sent
