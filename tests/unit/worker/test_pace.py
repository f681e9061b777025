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


def test_prefill_gets_half_of_the_time_on_a_slow_box() -> None:
    pace = Pace()
    for _ in range(50):
        pace.observe(decodes=4, prompt_tokens=0, seconds=0.3)
        pace.observe(decodes=4, prompt_tokens=30, seconds=0.3 + 30 * 0.01)
    n = pace.prompt_tokens()
    assert 0.8 * 0.3 < n * 0.01 < 1.2 * 0.3
