"""Which residents are worth a file, and what is written in the time there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edged.protocol import PrefixCache
from edged.worker.llamacpp import saved as module
from edged.worker.llamacpp.pool import Pool
from edged.worker.llamacpp.saved import SavedPrefixes
from edged.worker.llamacpp.saving import hottest, save
from edged.worker.llamacpp.sequence import Sequence

SYSTEM = list(range(200))


def resident(tokens: list[int], uses: int = 1, group: str = "", used_at: int = 0) -> Sequence:
    sequence = Sequence(list(tokens), context=len(tokens) + 1, group=group)
    sequence.n_computed = len(tokens)
    sequence.uses, sequence.used_at = uses, used_at
    return sequence


def test_uses_and_length_count_and_then_recency() -> None:
    often = resident([1] * 100, uses=5)
    long = resident([2] * 300)
    old = resident([3] * 100, used_at=1)
    new = resident([4] * 100, used_at=2)
    assert hottest([old, long, new, often], cuttable=True) == [often, long, new, old]


def test_short_ones_are_not_worth_a_file() -> None:
    assert hottest([resident([1] * 63, uses=100)], cuttable=True) == []


def test_what_another_file_holds_counts_for_nothing() -> None:
    first = resident([*SYSTEM, *[1] * 70], uses=9)
    tails = [resident([*SYSTEM, *[i] * 20]) for i in range(2, 9)]
    other_group = resident([*SYSTEM, *[2] * 20], group="g")
    long_tail = resident([*SYSTEM, *[9] * 80])
    everything = [*tails, long_tail, other_group, first]
    assert hottest(everything, cuttable=True) == [first, other_group, long_tail]
    assert len(hottest(everything, cuttable=False)) == len(everything)


class FakeRunner:
    """Gives states at a GB a second, by its own clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.sizes: dict[int, int] = {}

    def state_bytes(self, slot: int) -> int:
        return self.sizes[slot]

    def save(self, slot: int, room: memoryview) -> bool:
        room[:] = bytes([slot]) * len(room)
        self.now_s += len(room) / 1e9
        return True


@pytest.fixture
def saved(tmp_path: Path) -> SavedPrefixes:
    return SavedPrefixes(PrefixCache(1 << 40, 1 << 40, str(tmp_path)), "m", "k", cuttable=True)


def pool_of(runner: FakeRunner, *residents: tuple[Sequence, int]) -> Pool:
    pool = Pool(cells=1000, slots=8, cuttable=True)
    for slot, (sequence, n_bytes) in enumerate(residents):
        sequence.slot = slot
        pool.residents.append(sequence)
        runner.sizes[slot] = n_bytes
    return pool


def run(pool: Pool, runner: FakeRunner, saved: SavedPrefixes, limit_s: float) -> int:
    fake: Any = runner
    return save(pool, fake, saved, limit_s, lambda: runner.now_s)


def test_hottest_are_written_first_until_the_time_is_up(saved: SavedPrefixes) -> None:
    runner = FakeRunner()
    pool = pool_of(
        runner,
        (resident([1] * 100, uses=1), 10_000_000),
        (resident([2] * 100, uses=9), 20_000_000),
        (resident([3] * 100, uses=5), 900_000_000),
    )
    # It goes at 1 GB a second, as the first file tells: the second hottest is not begun.
    assert run(pool, runner, saved, 0.2) == 2
    assert saved.best(resident([2] * 200))[0] is not None
    assert saved.best(resident([3] * 200))[0] is None


def test_what_is_there_already_is_not_written_again(saved: SavedPrefixes) -> None:
    runner = FakeRunner()
    pool = pool_of(runner, (resident([1] * 100), 1000))
    assert run(pool, runner, saved, 1) == 1
    assert run(pool, runner, saved, 1) == 0


def test_without_time_nothing_is_begun(saved: SavedPrefixes) -> None:
    runner = FakeRunner()
    assert run(pool_of(runner, (resident([1] * 100), 1000)), runner, saved, 0) == 0


def test_full_disk_ends_it_without_an_error(
    saved: SavedPrefixes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FREE_SHARE", 1.0)
    runner = FakeRunner()
    assert run(pool_of(runner, (resident([1] * 100), 1000)), runner, saved, 1) == 0
