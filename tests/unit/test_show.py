"""What `edged status` prints of a model."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from edged.cli.show import _models
from edged.protocol import Stats
from edged.status import ModelStatus

REASON = "2 → 1 threads: other programs take 1.0 of 2 CPUs"


@pytest.mark.parametrize("reason", ["", REASON])
def test_status_says_why_there_are_fewer_threads(reason: str) -> None:
    stats = Stats(9, 1, 0, 5, 9, 5, 0, 4, 30.0, threads=1, threads_batch=2, threads_reason=reason)
    model = ModelStatus(
        name="m",
        state="ready",
        engine="llamacpp",
        aliases=(),
        reasons=("no GPU",),
        error=None,
        since_s=1.0,
        pid=1,
        context=9,
        parallel=1,
        memory_bytes=None,
        open=1,
        queued=0,
        restarts=0,
        progress=None,
        load_s=None,
        build=None,
        stats=stats,
        stderr_tail=(),
        kind="chat",
    )
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(_models([msgspec.to_builtins(model)]))
    row = console.export_text().splitlines()[-1]
    assert row.rstrip().endswith(f"no GPU; {reason}" if reason else "no GPU")
