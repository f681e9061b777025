"""Memory of the daemon at rest: edged alone, no model loaded."""

import asyncio
import re
from pathlib import Path

from tests.bench.report import Result, Section
from tests.bench.scenario import EDGED, Row
from tests.bench.servers import Settings, edged, running

SETTLE_S = 5.0
PSS = Row("pss", "daemon, no model loaded: PSS", "MB", more_is_better=False, limit=60.0)


async def section(settings: Settings, folder: Path, n_rounds: int) -> Section:
    """Start the daemon so many times and measure each."""
    found = [await _rest_mb(settings, folder / f"rest{i}") for i in range(n_rounds)]
    about = f"edged alone, {SETTLE_S:.0f} s after its start, PSS of its processes"
    return Section("rest", about, (Result(PSS, {EDGED: tuple(found)}),))


async def _rest_mb(settings: Settings, folder: Path) -> float:
    """Return the PSS in MB (10^6 bytes) of the daemon and any child it has."""
    async with running(edged(settings, folder, load="on-demand")) as server:
        await asyncio.sleep(SETTLE_S)
        return sum(_pss_bytes(pid) for pid in _family(server.pid)) / 1e6


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(member for child in children for member in _family(int(child)))]


def _pss_bytes(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
