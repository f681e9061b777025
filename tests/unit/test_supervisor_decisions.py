"""The pure decisions of the supervisor, on a clock of the test's own."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edged.protocol import EXIT_BAD_MODEL, EXIT_FAULT, EXIT_NO_ENGINE, Stats
from edged.supervisor.lifecycle import (
    TICK_S,
    Backoff,
    Limits,
    Liveness,
    Work,
    blames_requests,
    cause_of_death,
    is_permanent,
    why_leave,
)

LIMITS = Limits()


def stats(progress: int) -> Stats:
    return Stats(progress, 1, 0, 0, 1, 0, 0, 0, 1.0)


def ticks(liveness: Liveness, start: float, seconds: int, *, busy: bool) -> str | None:
    """Tick once a second; return the verdict that came first."""
    for n in range(seconds):
        verdict = liveness.tick(start + n * TICK_S, busy=busy)
        if verdict:
            return verdict
    return None


def ready() -> Liveness:
    liveness = Liveness(LIMITS)
    liveness.ready(0.0)
    return liveness


# ── hung? ──


def test_silent_worker_is_hung_after_15_seconds() -> None:
    assert ticks(ready(), 0, 15, busy=False) is None
    assert "not a sign of life for 15 s" in str(ticks(ready(), 0, 17, busy=False))


def test_worker_that_speaks_is_not_hung_while_idle() -> None:
    liveness = ready()
    for second in range(1000):
        liveness.heard(second, stats(5))
        assert liveness.tick(second, busy=False) is None


def test_busy_worker_without_progress_is_hung_after_60_seconds() -> None:
    liveness = ready()
    verdicts = []
    for second in range(62):
        liveness.heard(second, stats(5))
        verdicts.append(liveness.tick(second, busy=True, work=Work(float(second), 0.0)))
    assert verdicts[:60] == [None] * 60
    assert "no engine step for 60 s" in str(verdicts[61])


def learned(step_s: int) -> Liveness:
    """Return a liveness that has seen steps of so many s."""
    liveness = ready()
    for second in range(30 * step_s):
        liveness.heard(second, stats(second // step_s))
        assert liveness.tick(second, busy=True, work=Work(float(second), 0.0)) is None
    return liveness


def stuck_after(liveness: Liveness, work: Callable[[int], Work | None]) -> int:
    """Return after how many s without a step it counts as hung; `work` in each of them."""
    start = 10_000
    for second in range(1000):
        liveness.heard(start + second, stats(-1))
        if liveness.tick(start + second, busy=True, work=work(second)):
            return second
    raise AssertionError("never")


def no_work(_second: int) -> Work:
    return Work(0.0, 0.0)


def test_worker_that_neither_steps_nor_works_is_hung_after_three_of_its_own_steps() -> None:
    quick, slow = learned(1), learned(4)
    assert quick.stuck_after_s == LIMITS.stuck_s
    assert 12 <= slow.stuck_after_s <= 15
    assert stuck_after(quick, no_work) <= LIMITS.stuck_s + TICK_S
    assert stuck_after(slow, no_work) <= 3 * 5 + TICK_S


@pytest.mark.parametrize(
    "work",
    [
        lambda second: Work(second * 1.0, 0.0),
        lambda second: Work(second * 0.05, 0.0),  # a starved one
        lambda _: Work(0.0, 0.0, engine_waits=True),  # for its disk, or for a CPU all the time
    ],
)
def test_engine_that_works_gets_the_long_limit_whatever_it_has_learned(
    work: Callable[[int], Work],
) -> None:
    assert stuck_after(learned(1), work) >= LIMITS.progress_s - 2


@pytest.mark.parametrize(
    "work", [lambda second: Work(0.0, second * 0.5), lambda _: Work(0.0, 0.0, loop_waits=True)]
)
def test_work_of_the_loop_alone_is_no_work_of_the_engine(work: Callable[[int], Work]) -> None:
    assert stuck_after(learned(1), work) <= LIMITS.stuck_s + TICK_S


def test_loop_that_is_kept_from_its_cpu_is_waited_for_as_long_as_it_may_be_silent() -> None:
    def silent_after(*, waits: bool) -> int:
        liveness = learned(1)
        for second in range(100):
            work = Work(0.0, 0.0, loop_waits=waits)
            if liveness.tick(10_000 + second, busy=True, work=work):
                return second
        raise AssertionError("never")

    assert silent_after(waits=True) >= LIMITS.silence_s - 4
    assert silent_after(waits=False) <= LIMITS.stuck_s + TICK_S


def test_step_that_goes_on_is_never_a_hang_however_long_it_takes() -> None:
    liveness = learned(1)
    for second in range(10_000, 12_000):
        liveness.heard(second, replace(stats(-1), pulse=second))
        assert liveness.tick(second, busy=True, work=Work(0.0, 0.0)) is None


def test_what_the_engine_says_of_its_steps_counts() -> None:
    liveness = ready()
    liveness.heard(0, stats(0))
    liveness.heard(1, replace(stats(20), step_ms=4000.0))
    assert liveness.stuck_after_s == 12


@pytest.mark.parametrize(
    ("shows_work", "work"), [(False, no_work), (True, lambda _: None)], ids=["GPU", "no /proc"]
)
def test_engine_whose_work_is_not_seen_gets_time_for_its_first_steps(
    shows_work: bool, work: Callable[[int], Work | None]
) -> None:
    liveness = Liveness(LIMITS, shows_work=shows_work)
    liveness.ready(0.0)
    for second in range(10):
        liveness.heard(second, stats(second))
        liveness.tick(second, busy=True, work=work(second))
    assert liveness.stuck_after_s == LIMITS.silence_s
    assert stuck_after(liveness, work) >= LIMITS.silence_s - 2 * TICK_S


def test_engine_whose_work_is_seen_is_told_from_a_dead_one_from_the_first_step() -> None:
    assert stuck_after(ready(), no_work) <= LIMITS.stuck_s + TICK_S
    assert stuck_after(ready(), lambda second: Work(second * 0.1, 0.0)) >= LIMITS.progress_s - 2


def test_only_the_part_of_a_tick_counts_in_which_a_request_was_open() -> None:
    """Ticks are a second apart; the request comes just before one of them."""
    liveness = ready()
    for second in range(10):
        liveness.heard(second, stats(1))
        liveness.tick(second, busy=False, work=Work(0.0, 0.0))
    liveness.opened(9.9)
    verdicts = {}
    for second in range(10, 20):
        liveness.heard(second, stats(1))
        verdicts[second] = liveness.tick(second, busy=True, work=Work(0.0, 0.0))
    first = min(second for second, verdict in verdicts.items() if verdict)
    assert first - 9.9 >= LIMITS.stuck_s
    assert first - 9.9 <= LIMITS.stuck_s + TICK_S


@pytest.mark.parametrize("sign", ["step", "frame"])
def test_time_before_a_sign_of_life_does_not_count(sign: str) -> None:
    """One that comes just before a tick: nothing of that tick counts."""
    liveness = ready()
    for second in range(5):
        liveness.heard(second, stats(second))
        liveness.tick(second, busy=sign == "step", work=Work(float(second), 0.0))
    liveness.heard(4.9, stats(5))
    limit_s = LIMITS.stuck_s if sign == "step" else LIMITS.silence_s
    silent_s = next(
        second - 4.9
        for second in range(5, 100)
        if liveness.tick(second, busy=sign == "step", work=Work(4.0, 0.0))
    )
    assert limit_s <= silent_s <= limit_s + TICK_S


@pytest.mark.parametrize(
    ("returncode", "hung", "blamed"),
    [(-11, False, True), (70, False, True), (-9, False, False), (-15, False, False),
     (0, False, False), (-6, True, True), (-9, True, True)],
)  # fmt: skip
def test_requests_are_blamed_only_for_what_a_request_can_do(
    returncode: int, hung: bool, blamed: bool
) -> None:
    assert blames_requests(returncode, hung=hung) == blamed


def test_progress_however_slow_is_enough() -> None:
    liveness = ready()
    for second in range(1000):
        liveness.heard(second, stats(second // 50))
        assert liveness.tick(second, busy=True, work=Work(float(second), 0.0)) is None


def test_time_without_requests_does_not_count_as_stuck() -> None:
    liveness = ready()
    for second in range(1000):
        liveness.heard(second, stats(5))
        work = Work(float(second), 0.0)
        assert liveness.tick(second, busy=second % 50 > 0, work=work) is None


def test_load_is_hung_only_without_progress() -> None:
    liveness = Liveness(LIMITS)
    for second in range(1000):
        liveness.heard(second)
        if second % 200 == 0:
            liveness.loading(second)
        assert liveness.tick(second, busy=False) is None
    silent = Liveness(LIMITS)
    verdict = None
    for second in range(302):
        silent.heard(second, stats(second))  # its loop lives, its load does not
        verdict = verdict or silent.tick(second, busy=True)
    assert "loading made no progress for 300 s" in str(verdict)


@pytest.mark.parametrize(
    "work",
    [
        lambda second: Work(0.0, second * 0.5),  # still in its imports
        lambda second: Work(second * 0.5, 0.0),
        lambda _: Work(0.0, 0.0, loop_waits=True),
        lambda _: Work(0.0, 0.0, engine_waits=True),
    ],
)
def test_load_that_works_may_be_silent_for_long(work: Callable[[int], Work]) -> None:
    liveness = Liveness(LIMITS)
    assert all(
        liveness.tick(second, busy=False, work=work(second)) is None for second in range(290)
    )


def test_load_that_neither_speaks_nor_works_is_hung_soon() -> None:
    liveness = Liveness(LIMITS)
    for second in range(100):
        liveness.heard(second)  # its loop says that it lives, whatever the load does
        assert liveness.tick(second, busy=False, work=Work(0.0, 0.0)) is None
    verdicts = [liveness.tick(100 + n, busy=True, work=Work(0.0, 0.0)) for n in range(17)]
    assert verdicts[:12] == [None] * 12
    assert "neither a word nor any work in 15 s of its load" in str(verdicts[16])


def test_daemon_that_was_stopped_itself_blames_nobody() -> None:
    liveness = ready()
    liveness.heard(0, stats(1))
    assert liveness.tick(0, busy=True) is None
    assert liveness.tick(3600, busy=True) is None
    liveness.heard(3600, stats(1))
    assert liveness.tick(7200, busy=True) is None


# ── again when? ──


def test_waits_double_up_to_the_most() -> None:
    backoff = Backoff(LIMITS)
    waits = [backoff.crashed(served_s=1.0) for _ in range(8)]
    assert waits == [0.1, 1, 2, 4, 8, 16, 32, 60]


def test_fifth_bad_start_in_a_row_is_the_last() -> None:
    backoff = Backoff(LIMITS)
    assert [backoff.start_failed() for _ in range(5)] == [1, 2, 4, 8, None]


def test_start_that_succeeds_begins_the_row_anew() -> None:
    backoff = Backoff(LIMITS)
    for _ in range(4):
        assert backoff.start_failed() is not None
    backoff.crashed(served_s=1.0)
    assert [backoff.start_failed() is None for _ in range(5)] == [False] * 4 + [True]


def test_long_service_forgets_the_waits() -> None:
    backoff = Backoff(LIMITS)
    for _ in range(6):
        backoff.crashed(served_s=1.0)
    assert backoff.crashed(served_s=LIMITS.stable_s) == LIMITS.again_s
    assert backoff.crashed(served_s=1.0) == LIMITS.first_backoff_s


def test_reset_forgets_everything() -> None:
    backoff = Backoff(LIMITS)
    for _ in range(4):
        backoff.start_failed()
    backoff.reset()
    assert backoff.start_failed() == LIMITS.first_backoff_s


@given(st.lists(st.one_of(st.none(), st.floats(0, 1000)), max_size=50))
def test_waits_stay_within_their_bounds(history: list[float | None]) -> None:
    """None is a bad start, a number a crash after so many seconds of service."""
    backoff = Backoff(LIMITS)
    for served_s in history:
        wait_s = backoff.start_failed() if served_s is None else backoff.crashed(served_s)
        if wait_s is None:
            break
        assert LIMITS.again_s <= wait_s <= LIMITS.most_backoff_s


# ── dead of what? ──


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (-signal.SIGKILL, "killed by SIGKILL (by the kernel for lack of memory"),
        (-signal.SIGILL, "instruction that this CPU does not have"),
        (-signal.SIGBUS, "truncated"),
        (-signal.SIGRTMAX, "killed by SIGRTMAX"),
        (-99, "killed by signal 99"),
        (3, "exit code 3"),
        (0, "without being asked to"),
        (EXIT_FAULT, "could not repair"),
    ],
)
def test_cause_is_told_in_plain_words(returncode: int, words: str) -> None:
    assert words in cause_of_death(returncode)


def test_cause_ends_with_the_last_line_of_stderr() -> None:
    assert cause_of_death(-6, "GGML_ASSERT(x)").endswith("; its last words: GGML_ASSERT(x)")


def test_only_bad_models_and_missing_engines_are_permanent() -> None:
    assert {code for code in range(-64, 256) if is_permanent(code)} == {
        EXIT_BAD_MODEL,
        EXIT_NO_ENGINE,
    }


# ── leave why? ──

CALM = {
    "over": None,
    "replaced": False,
    "drained": False,
    "unloaded": False,
    "evicted": False,
    "idle_s": 5.0,
    "idle_unload_s": None,
}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, None),
        ({"over": "stopping", "replaced": True}, "stopping"),
        ({"over": "removed"}, "removed"),
        ({"replaced": True, "evicted": True}, "replaced"),
        ({"drained": True, "unloaded": True, "evicted": True}, "drained"),
        ({"unloaded": True, "evicted": True}, "unloaded"),
        ({"evicted": True}, "evicted"),
        ({"idle_unload_s": 5.0}, "idle"),
        ({"idle_unload_s": 5.1}, None),
        ({"idle_unload_s": 1.0, "idle_s": 0.0}, None),
    ],
)
def test_ready_worker_leaves_for_one_reason(facts: dict[str, object], reason: str | None) -> None:
    assert why_leave(**(CALM | facts)) == reason
