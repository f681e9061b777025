"""Leaks, told from workers that settle: figures of the test's own."""

from edged.supervisor.care import Growth

BOUND = 100


def looks(growth: Growth, sizes: list[int], answered: int = 100) -> str | None:
    """Return the verdict of the last look."""
    verdict = None
    for size in sizes:
        verdict = growth.look(size, answered, BOUND)
    return verdict


def test_worker_that_keeps_its_size_is_left_alone() -> None:
    assert looks(Growth(), [1000] * 100) is None


def test_growth_of_a_worker_that_settles_does_not_count() -> None:
    growth = Growth()
    assert looks(growth, [1000 + 50 * n for n in range(30)], answered=5) is None
    assert looks(growth, [2500] * 100) is None


def test_growth_beyond_the_bound_is_told_with_the_figures() -> None:
    growth = Growth()
    assert looks(growth, [1000] * 20) is None
    assert looks(growth, [1100] * 20) is None
    verdict = looks(growth, [1101] * 20, answered=500)
    assert verdict == "it grew by 101 B in 500 requests; 100 B are allowed"


def test_memory_that_is_given_back_is_no_leak() -> None:
    growth = Growth()
    looks(growth, [1000] * 20)
    assert all(looks(growth, [5000] * 9 + [1000]) is None for _ in range(20))
