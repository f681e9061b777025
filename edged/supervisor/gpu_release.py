"""After a worker on a GPU has ended: NVML has to show its memory back, else the log says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from edged.config.values import format_bytes
from edged.hardware import nvml
from edged.log import get_logger

log = get_logger()

_LIMIT_S = 15.0
_LOOK_S = 0.25


async def confirm(
    model: str,
    pid: int,
    before: int,
    *,
    held: Callable[[int], int] | None = None,
    limit_s: float = _LIMIT_S,
) -> bool:
    """Wait until the ended process `pid` holds nothing any more; say so, or that it does not.

    `before`: what it held at last, in bytes.
    """
    started = time.monotonic()
    while left := await asyncio.to_thread(held or nvml.used_bytes, pid):
        if time.monotonic() - started >= limit_s:
            log.error(
                "worker.gpu_memory_lost",
                model=model,
                pid=pid,
                held=format_bytes(left),
                after_s=round(limit_s),
                mend="`nvidia-smi` shows who holds it; a driver that keeps it needs a restart",
            )
            return False
        await asyncio.sleep(_LOOK_S)
    if before:
        seconds = round(time.monotonic() - started, 2)
        log.info("worker.gpu_memory_back", model=model, pid=pid, bytes=before, seconds=seconds)
    return True
