"""Which plan runs: the newest, or the one before it. On a clock of the test's own."""

from __future__ import annotations

from msgspec.structs import replace

from edged.config import Source
from edged.plan import ModelPlan
from edged.supervisor.lifecycle import Limits
from edged.supervisor.succession import Succession
from tests.daemon.support import model

LIMITS = Limits()
BUDGET = 1 << 30
OLD, NEW, NEWER = model("m"), model("m", "new"), model("m", "newer")
REFUSED = model("m", refusal="the file is broken")


def launch(plan: ModelPlan):  # type: ignore[no-untyped-def]  # noqa: ANN201
    assert plan.launch is not None
    return plan.launch


def serving(plan: ModelPlan = OLD) -> Succession:
    succession = Succession(plan, LIMITS)
    succession.ready(plan, 0.0)
    return succession


def test_first_plan_needs_no_trial_and_has_nothing_to_go_back_to() -> None:
    succession = Succession(OLD, LIMITS)
    assert not succession.is_on_trial(launch(OLD))
    assert not succession.failed(launch(OLD), "bad")
    assert succession.target is OLD
    assert succession.rolled_back is None


def test_changed_plan_is_on_trial_and_failing_goes_back() -> None:
    succession = serving()
    succession.reload(NEW, BUDGET)
    assert succession.target is NEW
    assert succession.is_on_trial(launch(NEW))
    assert succession.failed(launch(NEW), "no model file")
    assert succession.target is OLD
    assert succession.rolled_back == "no model file"


def test_reload_tries_a_rejected_plan_again() -> None:
    succession = serving()
    succession.reload(NEW, BUDGET)
    succession.failed(launch(NEW), "no model file")
    succession.reload(NEW, BUDGET)
    assert succession.target is NEW
    assert succession.rolled_back is None


def test_plan_taken_back_is_no_change() -> None:
    succession = serving()
    succession.reload(NEW, BUDGET)
    succession.reload(OLD, BUDGET)
    assert succession.target is OLD
    assert not succession.is_on_trial(launch(OLD))


def test_second_crash_in_the_time_of_proof_goes_back() -> None:
    succession = serving()
    succession.reload(NEW, BUDGET)
    succession.ready(NEW, 10.0)
    assert not succession.crashed(launch(NEW), "SIGSEGV")
    succession.ready(NEW, 12.0)
    assert succession.crashed(launch(NEW), "SIGSEGV")
    assert succession.target is OLD
    assert "died 2 times; the last: SIGSEGV" in str(succession.rolled_back)


def test_plan_that_served_long_enough_is_what_is_gone_back_to() -> None:
    succession = serving()
    succession.reload(NEW, BUDGET)
    succession.ready(NEW, 10.0)
    assert succession.look(launch(NEW), 11.0) == LIMITS.proving_s - 1
    assert succession.look(launch(NEW), 10.0 + LIMITS.proving_s) is None
    assert not succession.is_on_trial(launch(NEW))
    assert not succession.crashed(launch(NEW), "SIGKILL")
    succession.reload(NEWER, BUDGET)
    succession.failed(launch(NEWER), "bad")
    assert launch(succession.target) == launch(NEW)


def test_plan_changed_during_the_trial_is_judged_anew() -> None:
    succession = serving()
    succession.reload(NEW, BUDGET)
    succession.ready(NEW, 10.0)
    succession.crashed(launch(NEW), "SIGSEGV")
    succession.reload(NEWER, BUDGET)
    succession.ready(NEWER, 20.0)
    assert not succession.crashed(launch(NEWER), "SIGSEGV")
    succession.crashed(launch(NEWER), "SIGSEGV")
    assert succession.target is OLD


def test_refused_plan_leaves_the_proven_one_in_force() -> None:
    succession = serving()
    succession.reload(REFUSED, BUDGET)
    assert succession.target is OLD
    assert succession.rolled_back == "the file is broken"
    succession.reload(NEW, BUDGET)
    assert succession.target is NEW


def test_refused_plan_without_a_proven_one_is_the_models_fate() -> None:
    succession = Succession(OLD, LIMITS)
    succession.reload(REFUSED, BUDGET)
    assert succession.target is REFUSED


def test_proven_plan_that_does_not_fit_any_more_is_not_gone_back_to() -> None:
    succession = serving(model("m", mb=100))
    succession.reload(REFUSED, 50 << 20)
    assert succession.target is REFUSED


def test_upstream_has_nothing_to_go_back_to() -> None:
    succession = serving()
    succession.reload(replace(OLD, engine="upstream", launch=None), BUDGET)
    succession.reload(REFUSED, BUDGET)
    assert succession.target is REFUSED


def test_update_in_place_follows_also_while_rolled_back() -> None:
    succession = serving()
    pinned = replace(OLD, model=replace(OLD.model, pin=True))
    succession.reload(pinned, BUDGET)
    assert succession.target is pinned
    succession.reload(NEW, BUDGET)
    succession.failed(launch(NEW), "bad")
    assert succession.target is pinned


def test_proven_plan_runs_until_the_files_of_the_new_one_are_here() -> None:
    coming = replace(NEW, launch=None, memory=None, missing=(Source("hf", "a/b"),))
    succession = serving()
    succession.reload(coming, BUDGET)
    assert succession.target is OLD
    assert succession.rolled_back is None
    succession.reload(coming, 0)  # no room for it any more
    assert succession.target is coming
    succession.reload(coming, BUDGET)
    succession.reload(NEW, BUDGET)
    assert succession.target is NEW
    first = Succession(coming, LIMITS)
    first.reload(coming, BUDGET)
    assert first.target is coming
