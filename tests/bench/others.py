"""How much of the box others took while an act ran: what makes its figures worthless."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
TOO_MUCH = 0.1  # of the box


@dataclasses.dataclass
class Taken:
    """Shares of the box's processor time, 0…1, while something ran.

    ``others``: by processes that are neither this one nor below it. ``stolen``: by other machines
    on the same hardware, as far as the hypervisor tells.
    """

    others: float = 0.0
    stolen: float = 0.0

    @property
    def too_much(self) -> bool:
        """Tell whether figures from that time say little."""
        return self.others + self.stolen > TOO_MUCH


@dataclasses.dataclass(frozen=True)
class _Ticks:
    total: int
    busy: int
    stolen: int
    ours: int


@contextlib.contextmanager
def watched() -> Iterator[Taken]:
    """Measure what others take inside; the figures are there at the end."""
    taken = Taken()
    before = _now()
    try:
        yield taken
    finally:
        after = _now()
        total = max(1, after.total - before.total)
        ours = after.ours - before.ours
        taken.others = max(0.0, (after.busy - before.busy - ours) / total)
        taken.stolen = (after.stolen - before.stolen) / total


def worst(taken: Sequence[Taken]) -> Taken:
    """Return the act in which most was taken."""
    return max(taken, key=lambda each: each.others + each.stolen)


def _now() -> _Ticks:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, fields)
    busy = user + nice + system + irq + softirq
    return _Ticks(busy + idle + iowait + steal, busy, steal, _ours())


def _ours() -> int:
    """Return the ticks of this process and all below it, the dead ones included."""
    parents: dict[int, int] = {}
    spent: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it just ended
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            spent[int(entry.name)] = sum(map(int, fields[11:15]))  # own and of reaped children
    own = os.getpid()
    total = 0
    for pid, ticks in spent.items():
        above = pid
        while above not in (own, 0):
            above = parents.get(above, 0)
        total += ticks if above == own else 0
    return total
