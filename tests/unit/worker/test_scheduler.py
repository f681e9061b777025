"""The scheduler against a fake context that knows what every cell holds."""

from __future__ import annotations

from typing import Any

import pytest

from edged.worker.llamacpp.scheduler import Scheduler
from edged.worker.llamacpp.sequence import Adapters, Span
from edged.worker.llamacpp.step import Share
from tests.unit.worker.fake_context import IMAGE, Driver, FakeContext, expected_answer, next_token


def make(
    *,
    cells: int = 64,
    parallel: int = 4,
    batch: int = 16,
    slots: int = 8,
    cuttable: bool = True,
    window: int = 0,
    keeps_checkpoints: bool = False,
) -> Driver:
    scheduler = Scheduler(
        cells=cells,
        parallel=parallel,
        batch=batch,
        slots=slots,
        cuttable=cuttable,
        window=window,
        keeps_checkpoints=keeps_checkpoints,
    )
    return Driver(scheduler, FakeContext(cells, cuttable, window))


# What images take: places, positions, and whether they are computed in one piece.
SHAPES = {1: (7, 7, False), 2: (5, 5, True), 3: (8, 3, False), 4: (1, 1, False)}


def with_images(*content: int | list[int]) -> tuple[list[int], tuple[Span, ...]]:
    """Return the prompt of tokens and of images by number, and where the images are."""
    prompt: list[int] = []
    spans = []
    for each in content:
        if isinstance(each, list):
            prompt += each
        else:
            n, n_positions, whole = SHAPES[each]
            spans.append(Span(len(prompt), n, n_positions, whole))
            prompt += [IMAGE * each + i for i in range(n)]
    return prompt, tuple(spans)


def test_decodes_come_first_and_prefill_fills_the_rest() -> None:
    driver = make(batch=8)
    first = driver.add(next([i, 1] for i in range(1, 9) if next_token([i, 1])), 60, None, "")
    driver.step()
    assert first.decoding
    second = driver.add([3] * 20, 60, None, "")
    batch = driver.step()
    assert [(c.sequence, c.n) for c in batch.chunks] == [(first, 1), (second, 7)]


def test_shorter_prefill_goes_first_but_long_one_never_starves() -> None:
    driver = make(cells=400, parallel=3, batch=8, slots=6)
    long = driver.add([1] * 60, 200, 1, "a")
    for i in range(30):
        driver.add([2 + i % 4] * 8, 200, 1, f"short {i}")
    for _ in range(40):
        driver.step()
    assert driver.ended[long] in ("stop", "length")


def test_next_turn_continues_the_resident_of_the_first() -> None:
    driver = make()
    first = driver.add([1, 2, 3, 4], 60, 6, "")
    driver.run_out()
    turn = [1, 2, 3, 4, *driver.answers[first], 5]
    second = driver.add(turn, 60, 1, "")
    driver.run_out()
    assert second.n_cached == len(turn) - 2  # all but the last answered token and the new one


def test_followers_wait_for_a_prefix_under_way_and_share_it() -> None:
    driver = make(cells=512, parallel=8, batch=16, slots=16)
    system = [1, 2, 3] * 20
    sequences = [driver.add([*system, 4, i % 5 + 1], 200, 1, "") for i in range(6)]
    computed = 0
    while not driver.scheduler.idle:
        computed += sum(chunk.n for chunk in driver.step().chunks)
    assert computed <= len(system) + 6 * 3
    assert [s.n_cached for s in sequences[1:]] == [len(system) + 1] * 5


def test_followers_catch_up_with_their_donor_in_one_step() -> None:
    driver = make(cells=900, batch=400, slots=8)
    prefix = [1 + i % 7 for i in range(200)]
    donor = driver.add([*prefix, 9], 300, None, "")
    for n in (2, 3, 4):
        driver.add([*prefix, *[n] * 30], 300, None, "")
    while not donor.decoding:
        driver.step()
    assert driver.scheduler.pace.prompt_tokens() < 90
    assert [chunk.n for chunk in driver.step().chunks] == [1, 30, 30, 30]
    late = driver.add([8] * 200, 300, None, "other")
    driver.step()
    assert 0 < late.n_computed < 90  # beside streams that began before it


def test_group_never_sees_the_prefix_of_another() -> None:
    driver = make()
    driver.add([1] * 10, 60, 1, "a")
    driver.run_out()
    other = driver.add([1] * 10, 60, 1, "b")
    driver.run_out()
    assert other.n_cached == 0


def test_uncuttable_resident_is_continued_only_from_its_end() -> None:
    driver = make(cuttable=False)
    first = driver.add([1, 2, 3, 4], 60, 3, "")
    driver.run_out()
    whole = [1, 2, 3, 4, *driver.answers[first][:-1]]
    differs = driver.add([1, 2, 3, 5], 60, 1, "")
    driver.run_out()
    assert differs.n_cached == 0
    continued = driver.add([*whole, 5], 60, 1, "")
    driver.run_out()
    assert continued.n_cached == len(whole)


@pytest.mark.parametrize("kind", [{"cuttable": False}, {"window": 4, "keeps_checkpoints": True}])
def test_followers_share_a_state_where_their_donor_pauses(kind: dict[str, Any]) -> None:
    driver = make(cells=512, parallel=8, batch=16, slots=16, **kind)
    system = [1, 2, 3] * 20
    sequences = [driver.add([*system, 4, i % 5 + 1, 2, 3], 200, 1, "") for i in range(5)]
    computed = 0
    while not driver.scheduler.idle:
        computed += sum(chunk.n for chunk in driver.step().chunks)
    assert [s.n_cached for s in sequences[1:]] == [len(system) + 1] * 4
    assert computed == len(system) + 1 + 5 * 3
    later = driver.add([*system, 4, 6, 6], 200, 1, "")
    driver.run_out()
    assert later.n_cached == len(system) + 1, "the checkpoint stays"


def test_next_turn_begins_at_the_border_of_the_last_one() -> None:
    driver = make(cells=512, slots=8, cuttable=False)
    prompt: list[int] = [1, 2, 3, 4] * 10
    cached = []
    for turn in range(3):
        border = len(prompt)
        asked = driver.add([*prompt, 5, 5], 200, 4, "", border=border)
        driver.run_out()
        cached.append(asked.n_cached)
        prompt = [*prompt, 5, 1, *[2 + turn] * 40]  # the answer is not shown as it was written
    assert cached == [0, 40, 82]


def test_whoever_agrees_with_a_state_that_is_past_leaves_a_checkpoint_there() -> None:
    driver = make(cells=512, slots=8, cuttable=False)
    system = [1, 2, 3, 4] * 10
    cached = []
    for end in range(2, 5):
        asked = driver.add([*system, *[end] * 5], 200, 2, "")
        driver.run_out()
        cached.append(asked.n_cached)
    assert cached == [0, 0, 40]


def test_forgotten_window_is_not_shared_and_not_continued() -> None:
    driver = make(cells=512, batch=64, slots=8, window=4)
    first = driver.add([1, 2, 3, 4] * 10, 200, 1, "")
    driver.run_out()
    driver.scheduler.watch(lambda _slot: 37)
    forked = driver.add([*[1, 2, 3, 4] * 9, 5, 5], 200, 1, "")
    longer = driver.add([*first.tokens[:40], 5], 200, 1, "")
    driver.run_out()
    assert (forked.n_cached, longer.n_cached) == (0, 40)


def test_broken_off_step_leaves_no_state_behind() -> None:
    driver = make(cells=512, cuttable=False)
    driver.add([1, 2, 3, 4], 60, 3, "")
    driver.run_out()
    running = [driver.add([i, 2, 3], 60, 5, "") for i in (2, 3)]
    driver.step()
    driver.step("interrupted")
    assert not driver.scheduler.pool.residents
    assert not driver.scheduler.running
    driver.run_out()
    assert all(driver.answers[s] == expected_answer(driver.prompts[s], 60, 5) for s in running)


def test_residents_give_way_before_running_sequences() -> None:
    driver = make(cells=32)
    for i in range(3):
        driver.add([i + 1] * 8, 30, 1, "")
    driver.run_out()
    assert driver.scheduler.pool.residents
    driver.add([5] * 25, 30, 1, "")
    driver.run_out()
    assert driver.scheduler.preemptions == 0


def test_youngest_is_preempted_and_answers_the_same() -> None:
    driver = make(cells=30, parallel=3, batch=30)
    prompts = [[1, 2, 3], [2, 3, 4], [4, 4, 1]]
    sequences = [driver.add(p, 30, 20, str(i)) for i, p in enumerate(prompts)]
    driver.run_out()
    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert driver.answers[sequence] == expected_answer(prompt, 30, 20)


def test_abort_of_a_waiting_sequence_leaves_nothing() -> None:
    driver = make(parallel=1)
    driver.add([1] * 5, 30, 5, "")
    waiting = driver.add([2] * 5, 30, 5, "")
    driver.step()
    driver.abort(waiting)
    driver.run_out()
    assert driver.answers[waiting] == []


def test_abort_of_a_donor_hands_its_part_to_the_followers() -> None:
    driver = make(cells=512, parallel=4, batch=16, slots=8)
    donor = driver.add([1, 2] * 40, 200, 1, "")
    follower = driver.add([1, 2] * 40 + [3], 200, 1, "")
    driver.step()
    driver.abort(donor)
    batch = driver.step()
    assert any(isinstance(operation, Share) for operation in batch.operations)
    driver.run_out()
    assert follower.n_cached == 16


def test_streams_go_on_between_the_parts_of_an_image() -> None:
    driver = make(cells=400, parallel=3, batch=4)
    stream = driver.add(next([i, 1] for i in range(1, 9) if next_token([i, 1])), 60, None, "")
    driver.step()
    prompt, spans = with_images([9], 1, [2])
    driver.add(prompt, 60, 1, "", spans)
    kinds = [
        "image" if batch.chunks[0].span else [c.sequence is stream for c in batch.chunks]
        for batch in (driver.step() for _ in range(4))
    ]
    assert kinds == [[True, False], "image", [True], "image"]


def test_image_in_one_piece_gets_its_room_from_younger_streams() -> None:
    driver = make(cells=30, parallel=3, batch=30)
    prompt, spans = with_images([9] * 4, 2, [2])
    look = driver.add(prompt, 30, 2, "a", spans)
    others = [driver.add([i, 1, 4], 30, 26, str(i)) for i in range(1, 3)]
    driver.run_out()
    assert driver.answers[look] == expected_answer(prompt, 30, 2)
    for i, other in enumerate(others, 1):
        assert driver.answers[other] == expected_answer([i, 1, 4], 30, 26)


def test_image_for_which_others_give_way_is_alone_in_its_step() -> None:
    """The small image of the youngest is planned first, then the oldest needs room for a whole."""
    driver = make(cells=24, parallel=4, batch=24)
    prompt, spans = with_images([1] * 10, 2, [2])
    oldest = driver.add(prompt, 24, 3, "a", spans)
    for i, token in enumerate((2, 3)):
        driver.add([token], 24, 8, f"stream {i}")
    prompt, spans = with_images(4, 4, 4, 4, [2])
    youngest = driver.add(prompt, 24, 3, "b", spans)
    while youngest.n_computed < 3:
        driver.step()
    assert (oldest.n_computed, driver.scheduler.pool.cells.free) == (10, 7)
    driver.step()
    assert [chunk.sequence for chunk in driver.step().chunks] == [youngest]
    assert driver.scheduler.pool.cells.free < 5, "the oldest has no room for its own"
    driver.run_out()
    assert all(end in ("stop", "length") for end in driver.ended.values())


def test_same_image_is_computed_once() -> None:
    driver = make(cells=400)
    for tail in ([2], [3, 4]):
        prompt, spans = with_images([1, 5], 3, tail)
        sequence = driver.add(prompt, 60, 1, "", spans)
        driver.run_out()
    assert sequence.n_cached == 2 + 8


def test_image_that_was_begun_is_not_shared_in_its_middle() -> None:
    driver = make(cells=400, batch=4)
    prompt, spans = with_images([1, 5], 3, [2])
    first = driver.add(prompt, 60, 1, "", spans)
    driver.step()
    driver.step()
    assert first.n_computed == 2 + 4
    driver.abort(first)
    second = driver.add(prompt, 60, 1, "", spans)
    driver.run_out()
    assert second.n_cached == 2


def test_steps_have_one_set_of_adapters_and_sets_take_turns() -> None:
    driver = make(cells=400, parallel=4, batch=16)
    sets: list[Adapters] = [(), ((1, 1.0),), (), ((1, 0.5),)]
    talkative = [i for i in range(1, 9) if next_token([i, 1])]
    for start, adapters in zip(talkative, sets, strict=False):
        driver.add([start, 1], 60, 40, "", adapters=adapters)
    order = []
    for _ in range(20):
        chunks = driver.step().chunks
        (adapters,) = {chunk.sequence.adapters for chunk in chunks}
        order.append((adapters, len(chunks)))
    turn = [((), 2), (((1, 1.0),), 1), (((1, 0.5),), 1)]
    assert order[:18] == [each for each in turn * 2 for _ in range(3)]


def test_newcomers_with_other_adapters_never_hold_up_the_oldest() -> None:
    driver = make(cells=400, parallel=3, batch=16)
    starts = ([i, j] for i in range(1, 12) for j in range(1, 12))
    start = next(each for each in starts if len(expected_answer(each, 60, 40)) == 40)
    oldest = driver.add(start, 60, 40, "", adapters=((9, 1.0),))
    for i in range(100):
        driver.add([2], 60, 1, "", adapters=((1, i / 100),))
    gaps = [0]
    while oldest not in driver.ended:
        with_it = any(chunk.sequence is oldest for chunk in driver.step().chunks)
        gaps = [*gaps, 0] if with_it else [*gaps[:-1], gaps[-1] + 1]
    assert max(gaps) <= 2, "newcomers have one step, and there are two beside the oldest"
    assert driver.scheduler.waiting, "there were newcomers all the time"


def test_prefix_of_other_adapters_is_not_shared() -> None:
    driver = make()
    for adapters in ((), ((1, 1.0),), ((1, 0.5),)):
        sequence = driver.add([1] * 10, 60, 1, "", adapters=adapters)
        driver.run_out()
        assert sequence.n_cached == 0


@pytest.mark.parametrize("n", [1, 3])
def test_books_that_are_wrong_about_the_context_fail_one_request_not_all(n: int) -> None:
    driver = make(parallel=3, batch=4)
    for i in range(n):
        driver.add([i + 1] * 4, 30, 3, str(i))
    while not driver.ended:
        driver.step("no_room")
    driver.run_out()
    assert sum(end == "failed" for end in driver.ended.values()) == 1
    assert len(driver.ended) == n


@pytest.mark.parametrize("cuttable", [True, False])
def test_restored_prefix_is_shared_like_a_resident(cuttable: bool) -> None:
    driver = make(cuttable=cuttable)
    driver.add([1] * 10, 60, 1, "")
    driver.run_out()
    driver.save(driver.scheduler.pool.residents[0])
    fresh = make(cuttable=cuttable)
    resident = fresh.restore(driver.snapshots[0])
    assert resident is not None
    assert resident.uses == 2
    assert fresh.restore(driver.snapshots[0]) is None, "it is there already"
    second = fresh.add([1] * 10 + [2, 3], 60, 2, "")
    fresh.run_out()
    assert second.n_cached == 10
    assert fresh.answers[second] == expected_answer([1] * 10 + [2, 3], 60, 2)


def test_restored_prefix_takes_nothing_from_running_sequences() -> None:
    driver = make(cells=32, batch=32)
    driver.add([1] * 10, 30, 1, "")
    driver.run_out()
    driver.save(driver.scheduler.pool.residents[0])
    busy = make(cells=32, batch=32)
    first = next([i, *[2] * 24] for i in range(1, 9) if next_token([i, *[2] * 24]))
    busy.add(first, 30, None, "")
    busy.step()
    assert busy.restore(driver.snapshots[0]) is None
    busy.run_out()


def test_restored_prefix_takes_the_place_of_the_longest_unused() -> None:
    driver = make(cells=32)
    driver.add([1] * 10, 30, 1, "")
    driver.run_out()
    driver.save(driver.scheduler.pool.residents[0])
    for i in (2, 3, 4):
        driver.add([i] * 9, 30, 1, "")
        driver.run_out()
    driver.restore(driver.snapshots[0])
    driver.check()
    assert [r.tokens[0] for r in driver.scheduler.pool.residents] == [3, 4, 1]


def test_next_turn_inherits_the_uses_of_what_it_continues() -> None:
    driver = make()
    first = driver.add([1, 2, 3, 4], 60, 6, "")
    driver.run_out()
    driver.add([1, 2, 3, 4, *driver.answers[first], 5], 60, 1, "")
    driver.run_out()
    (resident,) = driver.scheduler.pool.residents
    assert resident.uses == 2


def test_broken_step_of_whole_states_takes_those_of_all() -> None:
    driver = make(parallel=2, batch=8, cuttable=False)
    driver.add([1, 2], 30, 1, "a")
    driver.run_out()
    assert driver.scheduler.pool.residents
    long = driver.add([3] * 20, 30, 2, "b")
    driver.step()
    driver.add([4] * 8, 30, 2, "c")
    assert long.n_computed > 0
    batch = driver.step("interrupted")
    assert long not in [chunk.sequence for chunk in batch.chunks]
    assert not driver.scheduler.pool.residents
    assert long.n_computed == 0
    driver.run_out()
    assert driver.answers[long] == expected_answer([3] * 20, 30, 2)
