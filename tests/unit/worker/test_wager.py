"""When guesses are worth their time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.worker.llamacpp.wager import MOST, Costs, Odds, Offer, stakes


def costs(**seconds: float) -> Costs:
    """`m1=0.04`: a step of one token takes 40 ms."""
    found = Costs()
    for name, value in seconds.items():
        found.observe(int(name[1:]), value)
    return found


def test_nothing_is_guessed_before_a_step_was_measured() -> None:
    assert stakes(Costs(), 1, [Offer(8, 0.9)], most=8) == [0]


def test_unknown_sizes_are_tried() -> None:
    assert stakes(costs(m1=0.04), 1, [Offer(3, 0.6)], most=8) == [3]


def test_guesses_that_cost_as_much_as_steps_are_left() -> None:
    linear = costs(m1=0.04, m2=0.08, m9=0.36)
    assert stakes(linear, 1, [Offer(8, 0.95)], most=8) == [0]


def test_cheap_tokens_are_guessed_as_far_as_the_chance_carries() -> None:
    flat = costs(m1=0.040, m9=0.056)
    few, many = (stakes(flat, 1, [Offer(8, chance)], most=8)[0] for chance in (0.5, 0.95))
    assert 1 <= few < many == 8


def test_a_draft_that_costs_more_than_it_wins_is_left() -> None:
    flat = costs(m1=0.040, m9=0.044)
    assert stakes(flat, 1, [Offer(8, 0.8)], most=8)[0] > 0
    assert stakes(flat, 1, [Offer(8, 0.8, cost_s=0.04)], most=8) == [0]


def test_the_likeliest_offer_gets_the_room() -> None:
    flat = costs(m2=0.040, m10=0.041)
    assert stakes(flat, 2, [Offer(8, 0.6), Offer(8, 0.9)], most=8) == [0, 8]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.floats(0.01, 0.99)), min_size=1, max_size=8),
    st.dictionaries(st.integers(1, 40), st.floats(0.001, 1.0), min_size=1),
    st.integers(0, 32),
)
def test_stakes_keep_the_limits(
    offers: list[tuple[int, float]], seconds: dict[int, float], most: int
) -> None:
    table = Costs()
    for m, value in seconds.items():
        table.observe(m, value)
    taken = stakes(table, len(offers), [Offer(n, chance) for n, chance in offers], most=most)
    assert sum(taken) <= most
    assert all(0 <= t <= min(n, MOST) for t, (n, _) in zip(taken, offers, strict=True))


def test_odds_follow_what_happens() -> None:
    odds = Odds()
    first = odds.chance
    for _ in range(20):
        odds.learn(guessed=4, right=4)
    assert odds.chance > 0.95 > first
    for _ in range(40):
        odds.learn(guessed=4, right=0)
    assert odds.chance < 0.1


def test_odds_judge_nothing_behind_the_first_wrong_guess() -> None:
    one, two = Odds(), Odds()
    one.learn(guessed=8, right=1)
    two.learn(guessed=2, right=1)
    assert one.chance == two.chance


def test_bad_luck_is_forgotten_after_a_while() -> None:
    odds = Odds()
    for _ in range(40):
        odds.learn(guessed=1, right=0)
    low = odds.chance
    for _ in range(3000):
        odds.rest()
    assert low < 0.2
    assert odds.chance == pytest.approx(Odds().chance, rel=0.05)


def test_cost_lies_between_its_neighbours_and_follows_the_box() -> None:
    table = costs(m1=0.04, m5=0.08)
    assert table.of(3) == pytest.approx(0.06)
    assert table.of(8) == pytest.approx(0.08)
    for _ in range(50):
        table.observe(1, 0.02)
    assert table.of(1) == pytest.approx(0.02, rel=0.01)


def test_old_measurements_are_forgotten() -> None:
    table = costs(m1=0.04, m5=0.5)
    assert stakes(table, 1, [Offer(4, 0.9)], most=8) == [0]
    for _ in range(500):
        table.observe(1, 0.04)
    assert stakes(table, 1, [Offer(4, 0.9)], most=8) == [4]
