"""What a process takes and does: memory, and signs of work, from /proc.

Nothing here needs its cooperation, so it holds for a worker that is stuck, too.
"""

from __future__ import annotations

import os
from pathlib import Path

from msgspec import Struct

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_KIB = 1024


class Usage(Struct, frozen=True):
    """One look at a process; sizes in bytes."""

    resident_bytes: int
    swapped_bytes: int
    private_bytes: int  # anonymous, resident and swapped: what a leak adds to
    working_s: float  # CPU time so far, and a moment for each page that it waited for on the disk

    @property
    def taken_bytes(self) -> int:
        """What the box gets back when it ends, pages that it shares counted whole."""
        return self.resident_bytes + self.swapped_bytes


_FAULT_S = 0.005  # a page that comes from the disk


def read(pid: int) -> Usage | None:
    """Return the usage of a process now, None when it is gone. Costs some 50 µs."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    sizes = _sizes(lines)
    fields = stat.rpartition(")")[2].split()  # from the third field of proc(5) on
    major_faults, ticks = int(fields[9]), int(fields[11]) + int(fields[12])
    swapped = sizes.get("VmSwap", 0)
    return Usage(
        resident_bytes=sizes.get("VmRSS", 0),
        swapped_bytes=swapped,
        private_bytes=sizes.get("RssAnon", 0) + swapped,
        working_s=ticks / _TICKS_A_SECOND + major_faults * _FAULT_S,
    )


def proportional_bytes(pid: int) -> int | None:
    """Return PSS and swap of a process, None where the kernel does not tell.

    Walks its page tables: some 10 ms for 8 GiB, so not in the loop.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    sizes = _sizes(text)
    return sizes["Pss"] + sizes.get("SwapPss", 0) if "Pss" in sizes else None


def _sizes(text: str) -> dict[str, int]:
    """Return the lines `Name:   123 kB`, in bytes."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0]) * _KIB
    return found
