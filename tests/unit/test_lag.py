"""A loop that somebody holds up is seen to be late."""

from __future__ import annotations

import asyncio
import time

from edged.daemon.lag import Lag


async def test_blocked_loop_is_late_by_as_much() -> None:
    lag = Lag()
    task = asyncio.create_task(lag.run())
    await asyncio.sleep(0)
    time.sleep(1.2)  # noqa: ASYNC251 - on purpose
    async with asyncio.timeout(60):
        while lag.worst_s == 0.0:  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.01)
    assert lag.worst_s >= 0.5
    task.cancel()
