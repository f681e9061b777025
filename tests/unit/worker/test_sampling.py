from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.protocol import Sampling
from edged.worker.llamacpp import sampling as module
from edged.worker.llamacpp.sampling import Sampler

SIZES = st.sampled_from([3, 50, 255, 256, 257, 1000, 4096])


def row_of(seed: int, size: int, spread: float = 3.0) -> module.Row:
    return np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)


def sampler(prompt: list[int] | None = None, **said: Any) -> Sampler:
    return Sampler(Sampling(**said), prompt=prompt or [0])


def frequencies(row: module.Row, n: int = 4000, **said: Any) -> dict[int, float]:
    chooser = sampler(seed=1, **said)
    counts: dict[int, int] = {}
    for _ in range(n):
        token = chooser.sample(row.copy())
        counts[token] = counts.get(token, 0) + 1
    return {token: count / n for token, count in counts.items()}


def softmax(row: module.Row) -> Any:
    weights = np.exp(row.astype(np.float64) - row.max())
    return weights / weights.sum()


def test_temperature_zero_is_argmax_without_dice() -> None:
    row = row_of(1, 500)
    assert {sampler(temperature=0.0, seed=i).sample(row.copy()) for i in range(20)} == {
        int(row.argmax())
    }


@given(st.integers(0, 99), SIZES, st.integers(1, 300))
def test_top_k_finds_exactly_the_largest(seed: int, size: int, k: int) -> None:
    row = row_of(seed, size)
    k = min(k, size)
    found = module.largest(row, k)
    assert len(set(found.tolist())) == k
    # Of equal ones any may be taken: by their values, not by their places.
    assert row[found].tolist() == np.sort(row)[::-1][:k].tolist()


@given(st.integers(0, 99), SIZES, st.floats(0.01, 0.999))
def test_nucleus_is_the_smallest_set_that_reaches_top_p(seed: int, size: int, p: float) -> None:
    row = row_of(seed, size)
    shares = softmax(row)
    kept = module._nucleus(row, p)
    assert shares[kept].sum() >= p - 1e-6
    assert shares[kept[:-1]].sum() <= p + 1e-6
    assert shares[kept].min() >= np.delete(shares, kept).max(initial=0.0) - 1e-9


@given(st.integers(0, 99), SIZES, st.floats(0.01, 0.999))
def test_typical_set_is_the_closest_to_the_mean_surprise(seed: int, size: int, p: float) -> None:
    row = row_of(seed, size)
    shares = softmax(row)
    distance = np.abs(-np.log(shares) - (shares * -np.log(shares)).sum())
    kept = module._typical(row, p)
    assert shares[kept].sum() >= p - 1e-5
    assert shares[kept[:-1]].sum() <= p + 1e-5
    assert distance[kept].max() <= np.delete(distance, kept).min(initial=np.inf) + 1e-4


@given(st.integers(0, 99), SIZES, st.floats(0, 1, exclude_max=True))
def test_draw_matches_the_cumulative_distribution(seed: int, size: int, dice: float) -> None:
    weights = softmax(row_of(seed, size)).astype(np.float32)
    running = np.cumsum(weights, dtype=np.float64)
    at = module._pick(weights, dice)
    point = dice * running[-1]
    below = running[at - 1] if at else 0.0
    assert below - 1e-6 <= point <= running[at] + 1e-6


def test_draw_follows_the_probabilities() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    seen = frequencies(row)
    for token, share in enumerate([0.5, 0.3, 0.15, 0.05]):
        assert seen[token] == pytest.approx(share, abs=0.03)


def test_temperature_flattens() -> None:
    row = np.log(np.array([0.8, 0.2], np.float32))
    assert frequencies(row, temperature=2.0)[1] == pytest.approx(1 / 3, abs=0.03)


def test_min_p_drops_what_is_far_below_the_best() -> None:
    row = np.log(np.array([0.6, 0.3, 0.07, 0.03], np.float32))
    assert set(frequencies(row, min_p=0.2)) == {0, 1}


def test_typical_p_drops_the_surprising_and_the_obvious() -> None:
    shares = np.array([0.4, 0.2, 0.2, 0.1, 0.1], np.float32)
    surprise = -np.log(shares)
    distance = np.abs(surprise - (shares * surprise).sum())
    closest = {int(i) for i in np.argsort(distance)[:2]}
    assert set(frequencies(np.log(shares), typical_p=0.35)) == closest


def test_repeat_penalty_sees_the_prompt() -> None:
    row = np.array([2.0, 1.5, -1.0], np.float32)
    chooser = sampler([0], temperature=0.0, repeat_penalty=2.0)
    assert chooser.sample(row.copy()) == 1
    assert chooser.sample(row.copy()) == 0  # 1.0 against 0.75: both punished now


def test_presence_and_frequency_see_the_answer_only() -> None:
    row = np.array([2.0, 1.7, 0.0], np.float32)
    chooser = sampler([0], temperature=0.0, presence_penalty=0.5)
    assert [chooser.sample(row.copy()) for _ in range(3)] == [0, 1, 0]
    chooser = sampler([0], temperature=0.0, frequency_penalty=0.4)
    assert [chooser.sample(row.copy()) for _ in range(4)] == [0, 1, 0, 1]


def test_logit_bias_adds_and_ignore_eos_bans() -> None:
    row = np.array([2.0, 1.0, 0.0], np.float32)
    assert sampler(temperature=0.0, logit_bias={2: 5.0}).sample(row.copy()) == 2
    banned = Sampler(Sampling(temperature=0.0, ignore_eos=True), prompt=[1], ends=[0])
    assert banned.sample(row.copy()) == 1
    drawn = Sampler(Sampling(ignore_eos=True, seed=3, typical_p=0.9), prompt=[1], ends=[0])
    assert 0 not in {drawn.sample(row.copy()) for _ in range(200)}


def test_same_seed_draws_the_same_and_another_seed_differs() -> None:
    rows = [row_of(i, 1000, 1.0) for i in range(30)]

    def tokens(seed: int) -> list[int]:
        chooser = sampler(seed=seed, top_k=200, top_p=0.98)
        return [chooser.sample(row.copy()) for row in rows]

    assert tokens(5) == tokens(5)
    assert tokens(5) != tokens(6)
    assert tokens(-(2**63)) == tokens(-(2**63))


@pytest.mark.parametrize(
    "said",
    [
        {"temperature": 1e-300},
        {"temperature": 5e-324, "top_p": 0.5},
        {"repeat_penalty": 1e-300, "top_k": 40},
        {"repeat_penalty": 5e-324, "typical_p": 0.9},
        {"min_p": 5e-324},
        {"min_p": 1.0},
        {"top_p": 5e-324},
        {"top_p": 1 - 2**-53},
        {"typical_p": 5e-324},
        {"top_k": 2**31 - 1},
        {"temperature": 2.0, "frequency_penalty": -2.0, "presence_penalty": -2.0},
        {"seed": 2**63 - 1, "logit_bias": dict.fromkeys(range(600), -100.0)},
    ],
)
@pytest.mark.parametrize("spread", [0.0, 3.0, 500.0])
def test_extreme_values_still_choose_a_token(said: dict[str, Any], spread: float) -> None:
    chooser = sampler([0, 1, 2], **said)
    for i in range(20):
        assert 0 <= chooser.sample(row_of(i, 600, spread)) < 600


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("said", [{"temperature": 0.0}, {}, {"top_k": 5}, {"top_p": 0.9}])
def test_row_without_numbers_offers_no_choice(value: float, said: dict[str, Any]) -> None:
    with pytest.raises(module.NoChoiceError):
        sampler(**said).sample(np.full(600, value, np.float32))
    spoiled = row_of(1, 600)
    if value > 0 or np.isnan(value):
        spoiled[7] = value
        with pytest.raises(module.NoChoiceError):
            sampler(**said).sample(spoiled)
