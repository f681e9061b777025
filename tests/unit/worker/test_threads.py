"""Thread counts on a fake box: a step takes what the box and the count make of it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.worker.llamacpp.threads import Threads, allowance

LOOK_S = 0.25

Speed = Callable[[int], float]  # threads → steps per second


class Box:
    """Runs decode steps and looks at the load every `LOOK_S`, as `Balance` does."""

    def __init__(
        self, threads: Threads, speed: Speed, taken: Callable[[int], float] = lambda _: 0.0
    ) -> None:
        self.threads = threads
        self.speed = speed
        self.taken = taken
        self.noise = 0.0
        self.now_s = self.looked_s = 0.0
        self.n_steps = 0
        self.n_sequences = 1
        self._dice = random.Random(1)

    def run(self, seconds: float) -> float:
        """Return the steps per second of this time."""
        started_s, n = self.now_s, 0
        while self.now_s < started_s + seconds:
            decode = self.threads.now[0]
            step_s = (1 + self.noise * self._dice.random()) / self.speed(decode)
            self.now_s += step_s
            n += 1
            self.threads.step(self.n_sequences, step_s, decoding=True)
            if self.now_s - self.looked_s >= LOOK_S:
                self.looked_s = self.now_s
                self.threads.look(self.taken(decode))
        self.n_steps += n
        return n / (self.now_s - started_s)

    def until(self, decode: int, limit_s: float) -> float:
        """Run until `decode` is settled and in force; return the seconds it took."""
        started_s = self.now_s
        while not self.threads.settled[0] == self.threads.now[0] == decode:
            assert self.now_s - started_s < limit_s, self.threads.settled
            self.run(0.01)
        return self.now_s - started_s


def two_cores(seconds_per_step: float = 0.02) -> Speed:
    return lambda n: (1.0 if n == 2 else 0.68) / seconds_per_step


def two_cores_and_a_hog(n: int) -> float:
    return 20.0 if n == 2 else 34.0


def test_a_core_that_another_takes_is_left_to_it_and_taken_back() -> None:
    box = Box(Threads(2, 2, cpus=2), two_cores())
    quiet = box.run(5)
    box.speed, box.taken = two_cores_and_a_hog, lambda n: 0.7 if n == 2 else 1.0
    box.until(1, limit_s=2)
    assert box.threads.now == (1, 1)
    assert box.run(120) > 0.97 * two_cores_and_a_hog(1)
    assert box.threads.reason == "2 → 1 threads: other programs take 1.0 of 2 CPUs"
    box.speed, box.taken = two_cores(), lambda _: 0.0
    box.until(2, limit_s=2)
    assert box.threads.reason == ""
    assert box.run(5) == pytest.approx(quiet, rel=0.05)


def test_quiet_box_loses_less_than_a_hundredth() -> None:
    for step_s in (0.005, 0.02, 0.2, 1.5):
        box = Box(Threads(2, 2, cpus=2), two_cores(step_s))
        box.noise = 0.1
        assert box.run(600) > 0.99 / (1.05 * step_s)
        assert box.threads.settled == (2, 2)


def test_collapsed_steps_end_at_once() -> None:
    """A step of seconds, as two spinning threads on one core have it, is enough to know."""
    box = Box(Threads(2, 2, cpus=2), two_cores())
    box.run(1)
    box.speed, box.taken = lambda n: 0.4 if n == 2 else 26.0, lambda _: 1.0
    started = box.n_steps
    box.until(1, limit_s=10)
    assert box.n_steps - started < 40


def test_four_of_sixteen_cores() -> None:
    def speed(n: int) -> float:
        return n * 2.0 if n <= 12 else 12.0

    box = Box(Threads(16, 16, cpus=16), lambda n: n * 2.0)
    box.run(2)
    box.speed, box.taken = speed, lambda _: 4.02
    box.until(12, limit_s=3)
    assert box.run(120) > 0.97 * speed(12)
    assert box.threads.settled[0] == 12
    box.speed, box.taken = lambda n: n * 2.0, lambda _: 0.02
    box.until(16, limit_s=3)


def test_hyper_threads_of_others_cost_nothing() -> None:
    box = Box(Threads(8, 8, cpus=16), lambda n: n * 2.0, lambda _: 6.0)
    assert box.run(60) > 0.98 * 16
    assert box.threads.settled == (8, 8)


def test_slow_cores_are_left_out() -> None:
    """Eight fast cores and eight slow ones, where every barrier waits for the slowest."""
    box = Box(Threads(16, 16, cpus=16), lambda n: 40.0 if n <= 8 else 25.0)
    box.run(300)
    assert box.threads.settled[0] <= 8
    assert "measured to be faster" in box.threads.reason


def test_programs_that_give_way_are_not_given_way_to() -> None:
    """Niced programs fill what is idle: they seem to take a core, and cost nothing."""
    box = Box(Threads(2, 2, cpus=2), two_cores(), lambda n: 2.0 - n + 0.05)
    box.run(2)
    box.threads.look(1.0)  # a moment in which they were seen
    box.run(60)
    assert box.threads.settled[0] == 2


def test_a_count_that_lost_is_asked_for_ever_more_rarely() -> None:
    """Two threads remain the better ones though others take half a core."""
    box = Box(Threads(2, 2, cpus=2), lambda n: 40.0 if n == 2 else 30.0, lambda _: 0.5)
    assert box.run(600) > 0.985 * 40
    assert box.threads.settled[0] == 2


def test_contention_that_the_load_does_not_show() -> None:
    """In a container that sees only its own use, the clock alone must do."""
    box = Box(Threads(2, 2, cpus=2), two_cores())
    box.run(3)
    box.speed = two_cores_and_a_hog
    box.until(1, limit_s=4)
    box.speed = two_cores()
    box.until(2, limit_s=30)


def test_a_pause_is_no_contention() -> None:
    """Now and then a step takes long, as when the box is suspended for a moment."""
    box = Box(Threads(2, 2, cpus=2), two_cores())
    box.run(3)
    for _ in range(60):
        box.speed = lambda _: 10.0
        box.run(0.01)
        box.speed = two_cores()
        box.run(0.2)
        assert box.threads.now == (2, 2)


def test_longer_texts_are_no_contention() -> None:
    """Steps grow with the context; the count stays."""
    box = Box(
        Threads(2, 2, cpus=2), lambda n: (1.0 if n == 2 else 0.68) * 50 / (1 + box.now_s / 60)
    )
    box.run(240)
    assert box.threads.settled == (2, 2)


def test_phases_are_apart() -> None:
    """Prompts may be read faster with two threads where answers are not."""
    threads = Threads(2, 2, cpus=2)
    box = Box(threads, two_cores_and_a_hog, lambda _: 1.0)
    box.run(2)
    for _ in range(12):
        threads.step(512, 2.0 if threads.now[1] == 2 else 2.6, decoding=False)
    assert threads.settled == (1, 2)
    assert threads.reason.startswith("2 → 1 threads: other")


def prompt(threads: Threads, n_tokens: int, token_s: float, *, urgent: bool = False) -> int:
    """Read a prompt on two cores; return the threads that it got."""
    _, n = threads.ahead(n_tokens, decoding=False, urgent=urgent)
    threads.step(n_tokens, n_tokens * token_s * (1.0 if n == 2 else 1.7), decoding=False)
    return n


def test_streams_never_pay_for_a_trial_that_nothing_asks_for() -> None:
    """A step that reads a prompt beside streams takes twice as long with a core less."""
    threads = Threads(2, 2, cpus=2)
    dice = random.Random(5)
    for _ in range(2000):  # of 0.1 to 0.2 s, as on a box that moves between two speeds
        assert prompt(threads, 12, dice.choice((0.01, 0.02)), urgent=True) == 2
    while prompt(threads, 50, 0.004) == 2:
        pass
    assert threads.now[1] == 1, "in the middle of a trial"
    assert prompt(threads, 12, 0.01, urgent=True) == 2
    for _ in range(200):
        prompt(threads, 50, 0.004)
    assert threads.settled[1] == 2


def test_long_prompts_pay_for_one_only_after_minutes_without() -> None:
    threads = Threads(2, 2, cpus=2)
    prompt(threads, 512, 0.004)
    steps_s = next(n * 2.048 for n in range(1000) if prompt(threads, 512, 0.004) == 1)
    assert 480 < steps_s < 600


def test_a_core_that_is_taken_is_left_to_it_beside_streams_as_well() -> None:
    threads = Threads(2, 2, cpus=2)
    for _ in range(60):
        threads.look(1.0)
        _, n = threads.ahead(12, decoding=False, urgent=True)
        threads.step(12, 0.6 if n == 2 else 0.2, decoding=False)
    assert threads.settled[1] == 1


def test_clients_that_come_and_go_do_not_confuse_a_trial() -> None:
    """Steps with more sequences take longer; only steps of the same kind are compared."""
    dice = random.Random(3)
    threads = Threads(2, 2, cpus=2)
    box = Box(threads, lambda n: (1.0 if n == 2 else 0.68) * 50 / box.n_sequences)
    for _ in range(3000):
        box.n_sequences = dice.choice((1, 2, 4, 8))
        box.run(0.1)
        assert threads.settled == (2, 2)


def test_news_are_told_once_and_not_too_often() -> None:
    threads = Threads(2, 2, cpus=2)
    box = Box(threads, two_cores())
    assert threads.news(0.0) is None
    box.run(2)
    box.speed, box.taken = two_cores_and_a_hog, lambda _: 1.0
    box.until(1, limit_s=2)
    change = threads.news(10.0)
    assert change is not None
    assert (change.before[0], change.now[0]) == (2, 1)
    assert threads.news(11.0) is None
    box.speed, box.taken = two_cores(), lambda _: 0.0
    box.until(2, limit_s=2)
    assert threads.news(12.0) is None
    change = threads.news(15.0)
    assert change is not None
    assert change.reason == ""


@given(
    most=st.integers(1, 64),
    spare=st.integers(0, 64),
    taken=st.floats(0, 128),
    current=st.integers(1, 64),
)
def test_allowance_is_within_bounds_and_settles(
    most: int, spare: int, taken: float, current: int
) -> None:
    cpus = most + spare
    found = allowance(most, cpus, taken, min(current, most))
    assert 1 <= found <= most
    assert allowance(most, cpus, taken, found) == found
    assert allowance(most, cpus, 0.0, found) == most
    assert allowance(most, cpus, float(cpus), found) == 1


@given(
    most=st.integers(1, 6),
    events=st.lists(
        st.tuples(
            st.sampled_from(("step", "prefill", "look")),
            st.integers(1, 9),
            st.floats(1e-4, 5, allow_nan=False),
        ),
        max_size=300,
    ),
)
@settings(max_examples=60)
def test_counts_stay_within_bounds_whatever_happens(
    most: int, events: list[tuple[str, int, float]]
) -> None:
    threads = Threads(most, most, cpus=most)
    for what, n, value in events:
        match what:
            case "step":
                threads.step(n, value, decoding=True)
            case "prefill":
                threads.step(1 + 7 * n, value, decoding=False)
            case _:
                threads.look(value)
        assert all(1 <= count <= most for count in (*threads.now, *threads.settled))
        assert (threads.reason == "") == (threads.settled == (most, most))


@given(st.lists(st.tuples(st.booleans(), st.floats(0.5, 20)), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_whatever_came_before_the_right_count_is_found(
    periods: list[tuple[bool, float]],
) -> None:
    box = Box(Threads(2, 2, cpus=2), two_cores())
    for busy, seconds in periods:
        box.speed = two_cores_and_a_hog if busy else two_cores()
        box.taken = (lambda n: 0.7 if n == 2 else 1.0) if busy else (lambda _: 0.0)
        box.run(seconds)
    box.run(20)
    assert box.threads.settled[0] == (1 if periods[-1][0] else 2)
