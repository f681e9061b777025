"""Requests that kill workers, on a clock of the test's own."""

from __future__ import annotations

from msgspec.structs import replace

from edged.protocol import Generate, Text
from edged.supervisor.poison import Poison

KEEP_S = 600.0
KILLER, INNOCENT = Generate(Text("die")), Generate(Text("count"))


def test_second_death_makes_a_request_poison() -> None:
    poison = Poison(KEEP_S)
    assert poison.deaths(KILLER, 0) == 0
    poison.died([KILLER], 0)
    assert not poison.is_poison(KILLER, 1)
    poison.died([replace(KILLER, id=7)], 2)
    assert poison.is_poison(replace(KILLER, id=9), 3)
    assert not poison.is_poison(INNOCENT, 3)


def test_same_request_twice_in_one_worker_is_one_death() -> None:
    poison = Poison(KEEP_S)
    poison.died([KILLER, KILLER], 0)
    assert poison.deaths(KILLER, 0) == 1


def test_answer_clears_a_suspect() -> None:
    poison = Poison(KEEP_S)
    poison.died([KILLER, INNOCENT], 0)
    poison.answered(INNOCENT)
    poison.died([KILLER, INNOCENT], 1)
    assert poison.deaths(INNOCENT, 1) == 1
    assert poison.is_poison(KILLER, 1)


def test_poison_is_forgotten_after_its_time() -> None:
    poison = Poison(KEEP_S)
    poison.died([KILLER], 0)
    poison.died([KILLER], 10)
    assert poison.is_poison(KILLER, 10 + KEEP_S - 1)
    assert not poison.is_poison(KILLER, 10 + KEEP_S)
    assert poison.deaths(KILLER, 10 + KEEP_S) == 0


def test_suspects_are_bounded() -> None:
    poison = Poison(KEEP_S)
    for n in range(5000):
        poison.died([Generate(Text(str(n)))], n * 0.01)
    assert poison.deaths(Generate(Text("4999")), 50) == 1
    assert poison.deaths(Generate(Text("0")), 50) == 0
