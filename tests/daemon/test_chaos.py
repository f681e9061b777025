"""The short form of `make chaos`: every kind of fault once or twice, and all its rules."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.run import Chaos
from tests.daemon.appliance import needs_engine

_SECONDS = 25


@needs_engine
async def test_faults_touch_nobody_else_and_leave_nothing(tmp_path: Path) -> None:
    record = await Chaos(tmp_path, seconds=_SECONDS, seed=5).run()
    print(record.report("chaos"))
    assert record.broken() == []
    assert sum(request.end == "ok" for request in record.requests) > 100
    assert len(record.faults) > 3
