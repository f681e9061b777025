from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.auth import Key
from edged.errors import RateLimited
from edged.limits import Guard, Limiter


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(name: str = "k", **limits: int) -> Key:
    return Key(name=name, sha256="", **limits)  # type: ignore[arg-type]


def test_requests_flow_in_evenly() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    one = key(rpm=3)
    for _ in range(3):
        limiter.enter(one)
        limiter.leave(one)
    with pytest.raises(RateLimited, match="3 requests a minute") as caught:
        limiter.enter(one)
    assert caught.value.retry_after_s == 20
    clock.now += 19.9
    with pytest.raises(RateLimited):
        limiter.enter(one)
    clock.now += 0.2
    limiter.enter(one)
    limiter.enter(key("other", rpm=3))


def test_tokens_are_charged_when_known_and_may_be_overdrawn() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    one = key(tpm=600)
    limiter.enter(one)
    limiter.charge(one, 1200)
    with pytest.raises(RateLimited, match="600 tokens a minute") as caught:
        limiter.enter(one)
    assert caught.value.retry_after_s == 61  # 600 owed and one wanted, at ten a second
    clock.now += 60.2
    limiter.enter(one)


def test_parallel_is_given_back_and_a_refusal_takes_nothing() -> None:
    limiter = Limiter(Clock())
    one = key(parallel=2, rpm=100)
    limiter.enter(one)
    limiter.enter(one)
    for _ in range(5):
        with pytest.raises(RateLimited, match="2 requests at the same time"):
            limiter.enter(one)
    assert dict(limiter.headers(one))["x-ratelimit-remaining-requests"] == "98"
    limiter.leave(one)
    limiter.enter(one)


def test_headers_are_openais() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    one = key(rpm=60, tpm=6000)
    limiter.enter(one)
    limiter.charge(one, 9000)
    assert dict(limiter.headers(one)) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m30s",
    }
    assert limiter.headers(key("free")) == []


def test_changed_limit_keeps_what_was_taken() -> None:
    limiter = Limiter(Clock())
    limiter.enter(key(rpm=2))
    limiter.enter(key(rpm=2))
    limiter.enter(key(rpm=3))
    with pytest.raises(RateLimited):
        limiter.enter(key(rpm=3))
    limiter.enter(key())
    for _ in range(4):
        limiter.leave(key())
    limiter.forget([])
    for _ in range(3):  # a new account
        limiter.enter(key(rpm=3))


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5)), max_size=60))
def test_never_more_than_a_minute_and_its_allowance(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    limiter = Limiter(clock)
    one = key(rpm=10)
    entered: list[float] = []
    for wait, wishes in steps:
        clock.now += wait
        for _ in range(wishes):
            try:
                limiter.enter(one)
            except RateLimited:
                continue
            limiter.leave(one)
            entered.append(clock.now)
    for start in entered:
        assert sum(start <= at <= start + 60 for at in entered) <= 21


def test_guard_doubles_forgets_and_refuses_crowds() -> None:
    clock = Clock()
    guard = Guard(clock)
    waits = []
    for _ in range(7):
        waits.append(guard.wrong("10.0.0.1"))
        guard.done("10.0.0.1")
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert guard.wrong("10.0.0.2") == 0.2, "others are not held up"
    clock.now += 601
    crowd = [guard.wrong("10.0.0.1") for _ in range(9)]
    assert crowd[0] == 0.2
    assert crowd[-1] is None


def test_guard_sees_a_v6_network_and_a_mapped_address_as_one() -> None:
    guard = Guard(Clock())
    assert guard.wrong("2001:db8::1") == 0.2
    assert guard.wrong("2001:db8::ffff:2%eth0") == 0.4
    assert guard.wrong("2001:db8:0:1::1") == 0.2
    assert guard.wrong("10.0.0.9") == 0.2
    assert guard.wrong("::ffff:10.0.0.9") == 0.4
    assert guard.wrong("unix") == 0.2


def test_guard_is_bounded() -> None:
    guard = Guard(Clock())
    for i in range(guard.MOST_ADDRESSES + 100):
        guard.wrong(f"10.{i >> 16}.{(i >> 8) & 255}.{i & 255}")
    assert len(guard._seen) == guard.MOST_ADDRESSES
