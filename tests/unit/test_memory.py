"""Who gets memory, who leaves, who waits: decisions on a clock of the test's own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edged.errors import InsufficientMemory
from edged.plan.places import MAIN, gpu
from edged.supervisor.lifecycle import Limits
from edged.supervisor.memory import (
    Claim,
    Decision,
    Resident,
    decide,
    over_budget,
    room_beside,
)

LIMITS = Limits()
NOW = 1000.0


def resident(name: str, size: int, used: float = 0.0, **facts: object) -> Resident:
    """`used`: s ago."""
    return resident_of(name, {MAIN: size}, used, **facts)


def resident_of(name: str, sizes: dict[str, int], used: float = 0.0, **facts: object) -> Resident:
    return Resident(name, sizes, **({"busy": False, "pinned": False} | facts), last_used=NOW - used)  # type: ignore[arg-type]


def claim(size: int, *, waited: float | None = 0.0, name: str = "new") -> Claim:
    since = None if waited is None else NOW - waited
    return Claim(name, {MAIN: size}, NOW - (waited or 0.0), since)


def decided(
    wanted: Claim, running: Sequence[Resident], budget: int = 100, others: Sequence[Claim] = ()
) -> Decision:
    return decide(wanted, others, running, budgets={MAIN: budget}, now=NOW, limits=LIMITS)


def test_nobody_leaves_when_there_is_room() -> None:
    assert decided(claim(10), [resident("a", 90)]) == Decision(granted=True)


def test_longest_unused_leaves_first() -> None:
    running = [resident("a", 40, 10), resident("b", 40, 30), resident("c", 20, 20)]
    assert decided(claim(40), running).evict == ("b",)
    assert set(decided(claim(50), running).evict) == {"b", "c"}


def test_model_that_loads_fast_leaves_before_one_that_loads_slowly() -> None:
    running = [resident("slow", 50, 60, load_s=40.0), resident("fast", 50, 20, load_s=1.0)]
    assert decided(claim(50), running).evict == ("fast",)


def test_needless_leaving_is_spared() -> None:
    running = [resident("small", 10, 30), resident("large", 90, 20)]
    assert decided(claim(50), running).evict == ("large",)


def test_one_who_leaves_is_waited_for_and_nobody_else_sent_away() -> None:
    running = [resident("leaving", 60, 10, leaving=True), resident("idle", 40, 50)]
    assert decided(claim(50), running) == Decision()


def test_busy_models_are_waited_for_and_then_give_way() -> None:
    running = [
        resident("busy", 60, busy=True, ready_at=NOW - 500),
        resident("pin", 40, pinned=True),
    ]
    assert decided(claim(50, waited=LIMITS.patience_s - 1), running) == Decision()
    late = decided(claim(50, waited=LIMITS.patience_s), running)
    assert late == Decision(give_way=("busy",))


def test_only_as_many_busy_ones_give_way_as_it_takes() -> None:
    running = [
        resident("b1", 30, 1, busy=True),
        resident("b2", 30, 2, busy=True),
        resident("idle", 40, 50),
    ]
    late = decided(claim(65, waited=99), running)
    assert late.evict == ("idle",)
    assert len(late.give_way) == 1


def test_what_cannot_help_evicts_nobody() -> None:
    running = [resident("idle", 40, 50), resident("pin", 60, pinned=True, busy=True)]
    with pytest.raises(InsufficientMemory) as caught:
        decided(claim(50, waited=0), running)
    assert caught.value.message == (
        "needs 50 B of the 100 B for models: idle holds 40 B (idle); pin holds 60 B (pinned)"
    )
    assert caught.value.retry_after_s is not None


def test_pinned_alone_gives_no_hope_of_a_retry() -> None:
    with pytest.raises(InsufficientMemory) as caught:
        decided(claim(50), [resident("p", 60, pinned=True, busy=True)])
    assert caught.value.retry_after_s is None


def test_more_than_the_budget_is_refused_with_the_figures() -> None:
    with pytest.raises(InsufficientMemory) as caught:
        decided(claim(3 << 30), [], budget=2 << 30)
    assert caught.value.message == "needs 3 GiB, and the box has 2 GiB for models in all"


def test_model_that_nobody_waits_for_disturbs_no_busy_one() -> None:
    running = [resident("busy", 60, busy=True)]
    with pytest.raises(InsufficientMemory):
        decided(claim(50, waited=None), running)


def test_model_in_use_stays_for_a_multiple_of_its_load() -> None:
    used = {"used": LIMITS.linger_s / 2, "load_s": 10.0}
    young = resident("a", 100, **used, ready_at=NOW - 29)  # type: ignore[arg-type]
    old = resident("a", 100, **used, ready_at=NOW - 31)  # type: ignore[arg-type]
    out_of_use = resident("a", 100, LIMITS.linger_s, load_s=10.0, ready_at=NOW - 5)
    assert decided(claim(50), [young]) == Decision()
    assert decided(claim(50), [old]).evict == ("a",)
    assert decided(claim(50), [out_of_use]).evict == ("a",)


def test_minimum_residency_has_an_end() -> None:
    slow = resident("a", 100, busy=True, load_s=1000.0, ready_at=NOW - LIMITS.stay_most_s)
    assert decided(claim(50, waited=99), [slow]).give_way == ("a",)


def test_younger_claim_takes_nothing_that_the_older_one_waits_for() -> None:
    older, younger = claim(80, waited=9, name="older"), claim(30, waited=1, name="younger")
    running = [resident("busy", 60, busy=True)]
    assert decided(younger, running, others=[older]) == Decision()
    assert decided(claim(20, waited=1, name="small"), running, others=[older]).granted
    idle = [resident("idle", 60, 50)]
    assert decided(younger, idle, others=[older]) == Decision()  # and evicts nobody
    assert decided(older, idle, others=[younger]).evict == ("idle",)


def test_two_clients_that_alternate_do_not_thrash() -> None:
    """Two models of which one fits, each asked all the time: a fake clock, a whole hour."""
    load_s, now = 10.0, 0.0
    serving, ready_at, swaps = "a", 0.0, 0
    waiting_since = {"b": 0.0}
    longest_wait = 0.0
    while now < 3600:
        ((waiting, since),) = waiting_since.items()
        running = [
            Resident(serving, {MAIN: 80}, busy=True, pinned=False, last_used=now, load_s=load_s,
                     ready_at=ready_at)
        ]  # fmt: skip
        decision = decide(
            Claim(waiting, {MAIN: 80}, since, since), [], running,
            budgets={MAIN: 100}, now=now, limits=LIMITS,
        )  # fmt: skip
        if decision.give_way:
            swaps += 1
            longest_wait = max(longest_wait, now - since)
            waiting_since = {serving: now}
            now += load_s
            serving, ready_at = waiting, now
        now += 1.0
    assert longest_wait <= max(LIMITS.patience_s, LIMITS.stay_loads * load_s + load_s) + 1
    # at most a quarter of the time goes into loading
    assert swaps * load_s <= 3600 / (1 + LIMITS.stay_loads) + load_s
    assert swaps > 20  # and nobody starves


def test_growth_sends_idle_models_away_and_no_busy_one() -> None:
    running = [
        resident("fat", 90, busy=True),
        resident("idle", 20, 5),
        resident("pin", 5, pinned=True),
    ]
    assert over_budget(running, 100, NOW) == ("idle",)
    assert over_budget(running, 115, NOW) == ()
    assert over_budget([resident("fat", 190, busy=True)], 100, NOW) == ()


def test_successor_fits_beside_only_without_anybody_leaving() -> None:
    running = [resident("a", 40), resident("idle", 20)]
    assert room_beside({MAIN: 40}, (), running, {MAIN: 100})
    assert not room_beside({MAIN: 41}, (), running, {MAIN: 100})
    assert not room_beside({MAIN: 40}, [claim(1)], running, {MAIN: 100})


# ── a GPU's memory is a place of its own ──

GPUS = {MAIN: 100, gpu(0): 24, gpu(1): 24}


def on_gpu(index: int, size: int, *, waited: float = 0.0, main: int = 10) -> Claim:
    return Claim("new", {MAIN: main, gpu(index): size}, NOW - waited, NOW - waited)


def decided_on(
    wanted: Claim, running: Sequence[Resident], others: Sequence[Claim] = ()
) -> Decision:
    return decide(wanted, others, running, budgets=GPUS, now=NOW, limits=LIMITS)


def test_only_who_holds_what_is_short_leaves() -> None:
    running = [
        resident("cpu", 40, 99),
        resident_of("zero", {MAIN: 10, gpu(0): 20}, 10),
        resident_of("one", {MAIN: 10, gpu(1): 20}, 50),
    ]
    assert decided_on(on_gpu(0, 4), running) == Decision(granted=True)
    assert decided_on(on_gpu(0, 5), running).evict == ("zero",)
    assert decided_on(on_gpu(1, 5), running).evict == ("one",)
    assert decided_on(on_gpu(1, 5, main=60), running).evict == ("cpu", "one")


def test_model_on_two_gpus_needs_room_on_both() -> None:
    running = [
        resident_of("zero", {MAIN: 10, gpu(0): 20}, 10),
        resident_of("one", {MAIN: 10, gpu(1): 20}, 50),
    ]
    wanted = Claim("new", {MAIN: 10, gpu(0): 12, gpu(1): 12}, NOW, NOW)
    assert set(decided_on(wanted, running).evict) == {"zero", "one"}


def test_busy_one_on_the_gpu_gives_way_though_idle_ones_are_elsewhere() -> None:
    running = [
        resident("cpu", 40, 99),
        resident_of("zero", {MAIN: 10, gpu(0): 20}, busy=True, ready_at=NOW - 500),
    ]
    wanted = on_gpu(0, 10, waited=LIMITS.patience_s)
    assert decided_on(wanted, running) == Decision(give_way=("zero",))
    assert decided_on(on_gpu(0, 10), running) == Decision()


def test_what_is_short_of_a_gpu_is_said_with_who_holds_it() -> None:
    running = [
        resident("cpu", 40, 99),
        resident_of("zero", {MAIN: 10, gpu(0): 20}, pinned=True),
    ]
    with pytest.raises(InsufficientMemory) as caught:
        decided_on(on_gpu(0, 10), running)
    assert caught.value.message == "needs 10 B of the 24 B of GPU 0: zero holds 20 B (pinned)"
    assert caught.value.retry_after_s is None
    with pytest.raises(InsufficientMemory, match=r"^needs 25 B of GPU 0, which has 24 B for"):
        decided_on(on_gpu(0, 25), running)
    with pytest.raises(InsufficientMemory, match=r"^needs 1 B of GPU 7, which is not there$"):
        decided_on(on_gpu(7, 1), running)


def test_claim_elsewhere_does_not_wait_for_an_older_one_on_a_gpu() -> None:
    older = Claim("older", {MAIN: 10, gpu(0): 21}, NOW - 9, NOW - 9)
    running = [resident_of("zero", {MAIN: 10, gpu(0): 20}, busy=True)]
    assert decided_on(claim(50), running, [older]).granted
    assert decided_on(on_gpu(1, 20), running, [older]).granted
    assert not decided_on(on_gpu(0, 4), running, [older]).granted


def sizes(least: int, most: int) -> st.SearchStrategy[dict[str, int]]:
    of_gpus = {gpu(0): st.integers(0, most)}
    return st.fixed_dictionaries({MAIN: st.integers(least, most)}, optional=of_gpus)


residents = st.lists(
    st.builds(
        Resident,
        model=st.just(""),
        sizes=sizes(0, 50),
        busy=st.booleans(),
        pinned=st.booleans(),
        last_used=st.floats(0, NOW),
        load_s=st.floats(0, 100),
        ready_at=st.floats(0, NOW),
        leaving=st.booleans(),
    ),
    max_size=7,
).map(lambda items: [replace(each, model=str(n)) for n, each in enumerate(items)])


@given(
    sizes(0, 120), residents, st.tuples(st.integers(0, 120), st.integers(0, 120)), st.floats(0, 100)
)
def test_leaving_is_enough_minimal_and_allowed(
    wanted: dict[str, int], running: list[Resident], budget: tuple[int, int], waited: float
) -> None:
    by_name = {r.model: r for r in running}
    coming = {r.model for r in running if r.leaving}
    budgets = dict(zip((MAIN, gpu(0)), budget, strict=True))

    def fits(gone: set[str]) -> bool:
        def taken(place: str) -> int:
            return sum(r.sizes.get(place, 0) for r in running if r.model not in gone)

        return all(size + taken(place) <= budgets[place] for place, size in wanted.items())

    possible = {r.model for r in running if not r.pinned} | coming
    claimed = Claim("new", wanted, NOW - waited, NOW - waited)
    try:
        decision = decide(claimed, [], running, budgets=budgets, now=NOW, limits=LIMITS)
    except InsufficientMemory:
        assert not fits(possible)
        return
    leaving = {*decision.evict, *decision.give_way}
    assert decision.granted == fits(set())
    assert not leaving & coming
    for name in leaving:
        assert not by_name[name].pinned
        assert by_name[name].busy == (name in decision.give_way)
    if leaving:
        assert fits(leaving | coming)
        for fewer in itertools.combinations(decision.evict, max(0, len(decision.evict) - 1)):
            assert not fits({*fewer, *decision.give_way} | coming) or not decision.evict
