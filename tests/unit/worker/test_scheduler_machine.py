"""The scheduler under everything that can happen to it, in any order.

A state machine draws requests, steps, broken steps, aborts and crowds, and looks after each of them
at every cell (`Driver.check`); at its end all answers must be those of the model. A new way to
change the pool (a state that is restored, a draft that is rejected) is one more rule here, and its
operation one more case of `FakeContext.apply`.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edged.worker.llamacpp.pool import Pool
from edged.worker.llamacpp.scheduler import Scheduler
from edged.worker.llamacpp.sequence import Adapters, Sequence
from tests.unit.worker.fake_context import Driver, FakeContext, expected_answer
from tests.unit.worker.test_scheduler import with_images

CONTEXT = 64
TOKENS = st.integers(1, 5)  # few, so that prompts often begin alike
HEADS = st.sampled_from([[], [1] * 6, [1] * 6 + [2] * 5, [3, 4] * 5, [5, 1, 2] * 12])
LONG_HEADS = st.sampled_from([[5, 1, 2] * 12, [5, 1, 2] * 15])  # worth waiting for
GROUPS = st.sampled_from(["", "", "other"])
OUTCOMES = st.sampled_from(["done", "done", "interrupted", "no_room"])
ADAPTERS = st.sampled_from([(), (), ((1, 1.0),), ((1, 0.5),), ((1, 1.0), (2, 1.0))])
LIMITS = st.one_of(st.none(), st.integers(1, 12))

# What happened in all runs of the machine together: one that never preempts proves nothing.
HAPPENED: Counter[str] = Counter()


class Watched(Driver):
    """Counts what the scheduler does beside what it is asked for."""

    def step(self, outcome: str = "done") -> object:
        scheduler = self.scheduler
        preemptions, residents = scheduler.preemptions, set(scheduler.pool.residents)
        followers = {s for s in scheduler.running if s.donor is not None}
        batch = super().step(outcome)
        HAPPENED[outcome] += 1
        HAPPENED["preempted"] += scheduler.preemptions - preemptions
        HAPPENED["evicted"] += sum(r.slot is None for r in residents)
        HAPPENED["waits for a prefix"] += any(s.donor is not None for s in scheduler.running)
        HAPPENED["got the prefix"] += any(s.donor is None and s.n_computed for s in followers)
        HAPPENED["image"] += any(chunk.span is not None for chunk in batch.chunks)
        HAPPENED["guesses"] += any(chunk.guesses for chunk in batch.chunks)
        HAPPENED["checkpoint"] += any(r.checkpoint for r in scheduler.pool.residents)
        HAPPENED["window lost"] += any(s.lost for s in scheduler.running)
        HAPPENED["turns"] += len({s.adapters for s in scheduler.running}) > 1
        HAPPENED["idle"] += not batch.chunks
        HAPPENED["failed"] += "failed" in self.ended.values()
        assert batch.chunks or not scheduler.running, "where somebody runs, something is computed"
        return batch

    def abort(self, sequence: Sequence) -> None:
        follows = sequence.donor is not None
        leads = any(s.donor is sequence for s in self.scheduler.running)
        super().abort(sequence)
        HAPPENED["aborted"] += 1
        HAPPENED["aborted follower"] += follows
        HAPPENED["aborted donor"] += leads


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, stop, collide and are broken off."""

    driver: Watched

    @initialize(
        cells=st.integers(CONTEXT, 3 * CONTEXT),
        parallel=st.integers(1, 5),
        batch=st.integers(2, 24),
        spare=st.integers(1, 5),
        cuttable=st.sampled_from([True, True, False]),
        window=st.sampled_from([0, 0, 1, 4, 12]),
        keeps_checkpoints=st.booleans(),
    )
    def start(
        self,
        *,
        cells: int,
        parallel: int,
        batch: int,
        spare: int,
        cuttable: bool,
        window: int,
        keeps_checkpoints: bool,
    ) -> None:
        scheduler = Scheduler(
            cells=cells,
            parallel=parallel,
            batch=max(batch, parallel),
            slots=parallel + spare,
            cuttable=cuttable,
            window=window,
            keeps_checkpoints=keeps_checkpoints,
        )
        scheduler.pool.worth = 5  # these prompts are short
        self.driver = Watched(scheduler, FakeContext(cells, cuttable, window))
        self.strangers = 0

    # ── requests come ──

    @rule(
        head=HEADS,
        tail=st.lists(TOKENS, min_size=1, max_size=8),
        limit=LIMITS,
        group=GROUPS,
        adapters=ADAPTERS,
    )
    def admit(
        self,
        head: list[int],
        tail: list[int],
        limit: int | None,
        group: str,
        adapters: Adapters,
    ) -> None:
        self.driver.add(head + tail, CONTEXT, limit, group, border=len(head), adapters=adapters)

    @rule(
        head=st.lists(TOKENS, max_size=2),
        images=st.lists(st.sampled_from([1, 2, 3, 4, 4, [1]]), min_size=1, max_size=4),
        tail=st.lists(TOKENS, min_size=1, max_size=3),
        limit=st.integers(1, 6),
        adapters=ADAPTERS,
    )
    def admit_with_images(
        self,
        head: list[int],
        images: list[int | list[int]],
        tail: list[int],
        limit: int,
        adapters: Adapters,
    ) -> None:
        prompt, spans = with_images(head, *images, tail)
        self.driver.add(prompt, CONTEXT, limit, "", spans, adapters=adapters)

    @rule(
        head=LONG_HEADS,
        n=st.integers(2, 4),
        alike=st.booleans(),
        group=GROUPS,
        adapters=ADAPTERS,
    )
    def admit_family(
        self, head: list[int], n: int, *, alike: bool, group: str, adapters: Adapters
    ) -> None:
        """Several answers to one prompt, or several prompts that begin with the same one."""
        for i in range(n):
            prompt = [*head, 1 if alike else i]
            self.driver.add(prompt, CONTEXT, 4, group, adapters=adapters)

    @rule(n=st.integers(1, 4))
    def admit_strangers(self, n: int) -> None:
        """Nobody shares anything with these, so that they push residents out."""
        for _ in range(n):
            self.strangers += 1
            prompt = [1 + self.strangers % 5] * 20
            self.driver.add(prompt, CONTEXT, 20, f"stranger-{self.strangers}")

    @rule(data=st.data())
    def admit_next_turn(self, data: st.DataObject) -> None:
        driver = self.driver
        done = [s for s, end in driver.ended.items() if end in ("stop", "length")]
        if not done:
            return
        earlier = data.draw(st.sampled_from(done))
        prompt = driver.prompts[earlier] + driver.answers[earlier] + [2]
        if len(prompt) < CONTEXT:
            group, spans = earlier.group.partition(" ")[0], earlier.spans
            driver.add(prompt, CONTEXT, 4, group, spans, adapters=earlier.adapters)

    # ── steps ──

    @rule(n=st.integers(1, 6))
    def steps(self, n: int) -> None:
        for _ in range(n):
            self.driver.step()
            self.driver.check()

    @precondition(lambda self: self.driver.context.cuttable)
    @rule(right=st.integers(0, 3), wrong=st.integers(0, 2), outcome=OUTCOMES)
    def step_with_guesses(self, right: int, wrong: int, outcome: str) -> None:
        self.driver.guess(right, wrong)
        self.driver.step(outcome)

    @rule()
    def interrupted(self) -> None:
        self.driver.step("interrupted")

    @rule(n=st.integers(1, 3))
    def no_room(self, n: int) -> None:
        for _ in range(n):
            self.driver.step("no_room")
            self.driver.check()

    # ── requests leave ──

    def open_ones(self) -> list[Sequence]:
        return [s for s in self.driver.answers if s not in self.driver.ended]

    @precondition(lambda self: self.open_ones())
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.driver.abort(data.draw(st.sampled_from(self.open_ones())))

    @rule(
        head=LONG_HEADS,
        after=st.integers(0, 3),
        whom=st.sampled_from(["donor", "follower", "both"]),
        data=st.data(),
    )
    def abort_around_a_prefix(
        self, head: list[int], after: int, whom: str, data: st.DataObject
    ) -> None:
        self.admit_family(head, 3, alike=False, group="", adapters=())
        self.steps(after)
        followers = [s for s in self.driver.scheduler.running if s.donor is not None]
        if not followers:
            return
        follower = data.draw(st.sampled_from(followers))
        donor = follower.donor
        assert donor is not None
        for each, name in ((follower, "follower"), (donor, "donor")):
            if whom in (name, "both"):
                self.driver.abort(each)
                self.driver.check()

    @rule(really=st.integers(0, 4))
    def abort_all(self, really: int) -> None:
        for sequence in self.open_ones():
            if really == 4:
                self.driver.abort(sequence)

    @rule(data=st.data())
    def save(self, data: st.DataObject) -> None:
        if residents := self.driver.scheduler.pool.residents:
            self.driver.save(data.draw(st.sampled_from(residents)))
            HAPPENED["saved"] += 1

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        if self.driver.snapshots:
            found = self.driver.restore(data.draw(st.sampled_from(self.driver.snapshots)))
            HAPPENED["restored"] += found is not None

    # ── what must hold ──

    @invariant()
    def all_is_in_its_place(self) -> None:
        if hasattr(self, "driver"):
            self.driver.check()

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        driver = self.driver
        driver.run_out()
        assert driver.ended.keys() == driver.answers.keys(), "every request ends"
        for sequence, answer in driver.answers.items():
            expected = expected_answer(driver.prompts[sequence], CONTEXT, sequence.max_tokens)
            if driver.ended[sequence] in ("stop", "length"):
                assert answer == expected
            else:
                assert answer == expected[: len(answer)]
        assert not driver.scheduler.pool.operations


@pytest.mark.timeout(600)  # five seconds of a processor, however busy it is
def test_scheduler_keeps_its_books_whatever_happens() -> None:
    HAPPENED.clear()
    for _ in range(6):  # what is rare is missed by one run in some twenty
        run_state_machine_as_test(
            SchedulerMachine,
            settings=settings(
                max_examples=150,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        if all(HAPPENED.values()):
            return
    raise AssertionError(HAPPENED)


# ── a prefix under way, and what may happen to who computes it ──

PREFIX = [1, 2, 3, 4] * 20
N_STEPS = 8


def with_followers() -> Driver:
    """One computes a prefix in five steps, three want all or half of it or what another wants."""
    scheduler = Scheduler(cells=600, parallel=4, batch=16, slots=8)
    driver = Driver(scheduler, FakeContext(600))
    driver.add(PREFIX, 200, 4, "")
    driver.add([*PREFIX, 5], 200, 4, "")
    driver.add([*PREFIX[:40], 5, *PREFIX], 200, 4, "")
    driver.add([*PREFIX[:40], 5, *PREFIX, 1], 200, 4, "")
    return driver


# (steps before, which of the four): all places at which something may happen.
POSITIONS = [(before, whom) for before in range(N_STEPS) for whom in range(4)]


def run_and_count(driver: Driver) -> int:
    """Run to the end and return how many tokens were computed on the way."""
    computed = 0
    for _ in range(500):
        if driver.scheduler.idle:
            break
        computed += sum(chunk.n for chunk in driver.step().chunks)
        driver.check()
    for sequence, answer in driver.answers.items():
        expected = expected_answer(driver.prompts[sequence], 200, 4)
        aborted = driver.ended[sequence] == "aborted"
        assert answer == (expected[: len(answer)] if aborted else expected)
    return computed


def test_prefix_under_way_is_computed_once() -> None:
    driver = with_followers()
    n_answers = sum(len(expected_answer(p, 200, 4)) - 1 for p in driver.prompts.values())
    # The donor; one token; the rest behind the half; one token; and all answers.
    assert run_and_count(driver) == 80 + 1 + (1 + 80) + 1 + n_answers
    assert [s.n_cached for s in driver.answers] == [0, 80, 40, 121]


@pytest.mark.parametrize(("before", "whom"), POSITIONS)
def test_abort_around_a_prefix_under_way_leaves_the_others_right(before: int, whom: int) -> None:
    driver = with_followers()
    for _ in range(before):
        driver.step()
    sequence = list(driver.answers)[whom]
    if sequence not in driver.ended:
        driver.abort(sequence)
        driver.check()
    # What the donor leaves is shared; the first who can goes on with it for all.
    assert run_and_count(driver) <= 80 + 2 + 2 * 82 + 4 * 4


@pytest.mark.parametrize("outcome", ["interrupted", "no_room"])
@pytest.mark.parametrize(("before", "times"), POSITIONS)
def test_broken_steps_around_a_prefix_under_way_leave_all_right(
    before: int, times: int, outcome: str
) -> None:
    driver = with_followers()
    for _ in range(before):
        driver.step()
    for _ in range(times + 1):
        driver.step(outcome)
        driver.check()
    run_and_count(driver)
    assert {driver.ended[s] for s in driver.answers} <= {"stop", "length"}


@pytest.mark.parametrize(("before", "whom"), POSITIONS)
def test_preemption_around_a_prefix_under_way_leaves_all_right(before: int, whom: int) -> None:
    driver = with_followers()
    for _ in range(before):
        driver.step()
    sequence = list(driver.answers)[whom]
    if sequence in driver.scheduler.running:
        driver.scheduler._preempt(sequence)
        driver.check()
    run_and_count(driver)
    assert {driver.ended[s] for s in driver.answers} <= {"stop", "length"}


def test_isolated_groups_wait_for_nobody_and_share_nothing() -> None:
    scheduler = Scheduler(cells=600, parallel=4, batch=16, slots=8)
    driver = Driver(scheduler, FakeContext(600))
    for group in ("a", "b", ""):
        driver.add([*PREFIX, 5], 200, 4, group)
    driver.step()
    assert all(s.donor is None for s in scheduler.running)
    driver.run_out()
    assert [s.n_cached for s in driver.answers] == [0, 0, 0]


def test_pool_knows_no_prefix_of_another_group() -> None:
    pool = Pool(cells=100, slots=4, cuttable=True)
    one = Sequence([1] * 50, context=100, group="a")
    pool.place(one, None, 0)
    pool.grow(one, 49)
    one.n_computed = 49
    pool.announce(one, 0, 0)
    for group in ("", "A", "a ", "b"):
        other = Sequence([1] * 50, context=100, group=group)
        assert pool.choose(other) == (None, 0, None, 0)
    assert pool.choose(Sequence([1] * 50, context=100, group="a"))[:2] == (one, 49)
