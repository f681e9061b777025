from __future__ import annotations

from edged.worker.llamacpp.pace import TARGET_S, Pace


def test_budget_follows_the_measured_rate() -> None:
    pace = Pace()
    for _ in range(40):
        pace.observe(decodes=2, prompt_tokens=0, seconds=0.02)
        pace.observe(decodes=2, prompt_tokens=50, seconds=0.02 + 50 * 0.004)
    n = pace.prompt_tokens()
    assert 0.8 * TARGET_S < 0.02 + n * 0.004 < 1.2 * TARGET_S


def test_budget_never_ends_on_a_slow_box() -> None:
    pace = Pace()
    for _ in range(10):
        pace.observe(decodes=1, prompt_tokens=0, seconds=3.0)
        pace.observe(decodes=1, prompt_tokens=8, seconds=9.0)
    assert pace.prompt_tokens() > 0


def test_prefill_gets_its_share_of_the_time_on_a_slow_box() -> None:
    pace = Pace()
    for _ in range(50):
        pace.observe(decodes=4, prompt_tokens=0, seconds=0.3)
        pace.observe(decodes=4, prompt_tokens=30, seconds=0.3 + 30 * 0.01)
    n = pace.prompt_tokens()
    assert 0.8 * 0.12 < n * 0.01 < 1.2 * 0.12


def test_few_tokens_beside_streams_have_a_price_of_their_own() -> None:
    """Whole batches in between do not make the plan believe that a few cost as little each."""
    pace = Pace()
    for _ in range(60):
        pace.observe(decodes=0, prompt_tokens=512, seconds=512 * 0.002)
        pace.observe(decodes=4, prompt_tokens=0, seconds=0.05)
        n = pace.prompt_tokens()
        pace.observe(decodes=4, prompt_tokens=n, seconds=0.05 + n * 0.005)
    assert 0.8 * TARGET_S < 0.05 + pace.prompt_tokens() * 0.005 < 1.2 * TARGET_S


def test_a_box_that_becomes_slow_is_believed_within_a_few_steps() -> None:
    pace = Pace()
    for _ in range(60):
        pace.observe(decodes=4, prompt_tokens=0, seconds=0.05)
        pace.observe(decodes=4, prompt_tokens=20, seconds=0.05 + 20 * 0.002)
    for _ in range(4):
        pace.observe(decodes=4, prompt_tokens=20, seconds=0.05 + 20 * 0.006)
    assert 0.05 + pace.prompt_tokens() * 0.006 < 1.3 * TARGET_S


def test_what_many_tokens_cost_decides_where_many_fit() -> None:
    """Beside streams that began together a step may take a second."""
    pace = Pace()
    for _ in range(20):
        pace.observe(decodes=0, prompt_tokens=512, seconds=512 * 0.004)
        pace.observe(decodes=1, prompt_tokens=0, seconds=0.02)
    assert 200 < pace.prompt_tokens(1.0) < 260
