import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import InsufficientMemory
from edged.supervisor.memory import Resident, room_for


def resident(
    name: str, size: int, used: float, *, busy: bool = False, pin: bool = False
) -> Resident:
    return Resident(name, size, busy, pin, used)


def test_nobody_leaves_when_there_is_room() -> None:
    assert room_for(10, [resident("a", 90, 1)], 100) == ()


def test_longest_unused_leaves_first() -> None:
    running = [resident("a", 40, 3), resident("b", 40, 1), resident("c", 20, 2)]
    assert room_for(40, running, 100) == ("b",)
    assert room_for(50, running, 100) == ("b", "c")


def test_needless_leaving_is_spared() -> None:
    running = [resident("small", 10, 1), resident("large", 90, 2)]
    assert room_for(50, running, 100) == ("large",)


def test_busy_and_pinned_stay() -> None:
    running = [
        resident("busy", 40, 1, busy=True),
        resident("pinned", 40, 2, pin=True),
        resident("idle", 20, 3),
    ]
    assert room_for(20, running, 100) == ("idle",)
    with pytest.raises(InsufficientMemory) as caught:
        room_for(21, running, 100)
    assert caught.value.message == (
        "needs 21 B of the 100 B for models, and 80 B are held by busy (busy), pinned (pinned)"
    )
    assert caught.value.retry_after_s is not None


def test_pinned_alone_gives_no_hope_of_a_retry() -> None:
    with pytest.raises(InsufficientMemory) as caught:
        room_for(50, [resident("p", 60, 1, pin=True, busy=True)], 100)
    assert caught.value.retry_after_s is None


def test_more_than_the_budget_is_refused_with_the_figures() -> None:
    with pytest.raises(InsufficientMemory) as caught:
        room_for(3 << 30, [], 2 << 30)
    assert caught.value.message == "needs 3 GiB, and the box has 2 GiB for models in all"
    assert caught.value.retry_after_s is None


residents = st.lists(
    st.builds(
        Resident,
        model=st.just(""),
        bytes=st.integers(0, 50),
        busy=st.booleans(),
        pinned=st.booleans(),
        last_used=st.floats(0, 9),
    ),
    max_size=7,
).map(lambda items: [Resident(str(n), r.bytes, r.busy, r.pinned, r.last_used)
                     for n, r in enumerate(items)])  # fmt: skip


@given(st.integers(0, 120), residents, st.integers(0, 120))
def test_eviction_is_enough_minimal_and_allowed(
    wanted: int, running: list[Resident], budget: int
) -> None:
    sizes = {r.model: r.bytes for r in running}
    movable = {r.model for r in running if not r.busy and not r.pinned}

    def fits(leaving: set[str]) -> bool:
        return wanted + sum(s for name, s in sizes.items() if name not in leaving) <= budget

    try:
        leaving = room_for(wanted, running, budget)
    except InsufficientMemory:
        assert not fits(movable)
        return
    assert fits(set(leaving))
    assert set(leaving) <= movable
    for fewer in itertools.combinations(leaving, len(leaving) - 1) if leaving else ():
        assert not fits(set(fewer))
