"""Whose inputs share a batch: every input once, in order, within the limits, nobody starved."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edged.worker.llamacpp.packing import Inputs, Packing

TOKENS, SEQUENCES = 10, 4
MOST_INTERRUPTED = 50  # for ever, nothing would ever be computed
CALLS = st.lists(st.lists(st.integers(1, 15), min_size=1, max_size=9), max_size=8)


def call(*lengths: int) -> Inputs:
    return Inputs([[0] * length for length in lengths])


def packing(*calls: Inputs) -> Packing[Inputs]:
    found = Packing[Inputs](tokens=TOKENS, sequences=SEQUENCES)
    for each in calls:
        found.add(each)
    return found


def lengths(batch: list[tuple[Inputs, int]]) -> list[int]:
    return [len(each.tokens[index]) for each, index in batch]


def test_calls_give_one_input_in_turn() -> None:
    one, other = call(2, 2, 2), call(3)
    assert packing(one, other).take() == [(one, 0), (other, 0), (one, 1), (one, 2)]


def test_input_that_does_not_fit_goes_first_the_next_time() -> None:
    small, large = call(4, 4, 4), call(8)
    found = packing(small, large)
    assert found.take() == [(small, 0), (small, 1)]
    assert found.take() == [(large, 0)]
    assert found.take() == [(small, 2)]
    assert not found


def test_input_longer_than_a_batch_is_alone() -> None:
    long, short = call(15), call(1)
    found = packing(long, short)
    assert found.take() == [(long, 0)]
    assert found.take() == [(short, 0)]


@given(CALLS, st.data())
def test_every_input_is_computed_once_in_its_calls_order(
    wanted: list[list[int]], data: st.DataObject
) -> None:
    calls = [call(*each) for each in wanted]
    found = packing(*calls)
    computed: dict[int, list[int]] = {id(each): [] for each in calls}
    dropped: set[int] = set()
    n_interrupted = 0
    for _ in range(1000):
        if calls and data.draw(st.integers(0, 9)) == 0:
            gone = data.draw(st.sampled_from(calls))
            found.drop(gone)
            dropped.add(id(gone))
        batch = found.take()
        if not batch:
            break
        assert len(batch) <= SEQUENCES
        assert sum(lengths(batch)) <= TOKENS or len(batch) == 1
        assert not dropped & {id(each) for each, _ in batch}
        if n_interrupted < MOST_INTERRUPTED and data.draw(st.integers(0, 4)) == 0:
            n_interrupted += 1
            found.put_back(batch)
            continue
        for each, index in batch:
            computed[id(each)].append(index)
    assert not found
    for each in calls:
        done = computed[id(each)]
        assert done == list(range(len(done)))
        assert len(done) == len(each.tokens) or id(each) in dropped


@given(st.lists(st.integers(1, TOKENS), min_size=1, max_size=5), st.integers(1, 15))
def test_nobody_waits_longer_than_one_batch_for_each_call_before(
    many: list[int], length: int
) -> None:
    endless = [call(*[each] * 100) for each in many]
    late = call(length)
    found = packing(*endless, late)
    for _ in range(len(endless) + 1):
        if late in [each for each, _ in found.take()]:
            return
    raise AssertionError("the late call was passed over again and again")
