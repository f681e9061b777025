"""What a process takes and does: memory, and signs of work, from /proc.

Nothing here needs its cooperation, so it holds for a worker that is stuck, too.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_KIB = 1024


class Usage(Struct, frozen=True):
    """One look at a process; sizes in bytes."""

    resident_bytes: int
    swapped_bytes: int
    private_bytes: int  # anonymous, resident and swapped: what a leak adds to
    loop_s: float  # CPU time of the first thread so far
    engine_s: float  # … of all others, and a moment for each page that any of them waited for

    @property
    def taken_bytes(self) -> int:
        """What the box gets back when it ends, pages that it shares counted whole."""
        return self.resident_bytes + self.swapped_bytes


_FAULT_S = 0.005  # a page that comes from the disk
_STOPPED = "Tt"
_WAITING = "RD"  # runs or would; sleeps where only the disk can wake it


def read(pid: int) -> Usage | None:
    """Return the usage of a process now, None when it is gone. Costs some 70 µs."""
    try:
        sizes = _sizes(_text(f"/proc/{pid}/status"))
        whole = _stat(f"/proc/{pid}/stat")
        first = _stat(f"/proc/{pid}/task/{pid}/stat")
    except OSError:
        return None
    swapped = sizes.get("VmSwap", 0)
    loop_s, all_s = first.cpu_s, whole.cpu_s
    return Usage(
        resident_bytes=sizes.get("VmRSS", 0),
        swapped_bytes=swapped,
        private_bytes=sizes.get("RssAnon", 0) + swapped,
        loop_s=loop_s,
        engine_s=all_s - loop_s + whole.major_faults * _FAULT_S,
    )


class Waits(NamedTuple):
    """Whether threads of a process wait for a CPU (or have one), or for the disk."""

    first: bool
    others: bool


def waits(pid: int) -> Waits:
    """Return who waits in a process at this moment; nobody when it is gone. 30 µs a thread."""
    first, others = False, False
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it has just ended
                is_waiting = _stat(f"{task}/stat").state in _WAITING
                if task.name == str(pid):
                    first = is_waiting
                else:
                    others = others or is_waiting
    return Waits(first, others)


def is_stopped(pid: int) -> bool:
    """Return whether somebody has stopped a process (SIGSTOP, a debugger)."""
    try:
        return _stat(f"/proc/{pid}/stat").state in _STOPPED
    except OSError:
        return False


def proportional_bytes(pid: int) -> int | None:
    """Return PSS and swap of a process, None where the kernel does not tell.

    Walks its page tables: some 10 ms for 8 GiB, so not in the loop.
    """
    try:
        sizes = _sizes(_text(f"/proc/{pid}/smaps_rollup"))
    except OSError:
        return None
    return sizes["Pss"] + sizes.get("SwapPss", 0) if "Pss" in sizes else None


class _Stat(NamedTuple):
    """A line of proc(5)'s `stat`."""

    state: str
    major_faults: int
    cpu_s: float


def _stat(path: str) -> _Stat:
    fields = _text(path).rpartition(")")[2].split()  # from the third field on
    ticks = int(fields[11]) + int(fields[12])
    return _Stat(fields[0], int(fields[9]), ticks / _TICKS_A_SECOND)


def _text(path: str) -> str:
    return Path(path).read_text(encoding="ascii", errors="replace")


def _sizes(text: str) -> dict[str, int]:
    """Return the lines `Name:   123 kB`, in bytes."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0]) * _KIB
    return found
