"""How late the loop is: what a client waits when the daemon itself is the slow one."""

from __future__ import annotations

import asyncio
import time
from collections import deque

_LOOK_S = 0.5
_KEPT = 120  # looks: a minute


class Lag:
    """The latest minute of one loop; `run` in a task of that loop."""

    def __init__(self) -> None:
        self._late_s: deque[float] = deque(maxlen=_KEPT)

    @property
    def worst_s(self) -> float:
        """The most that a wish of the last minute was late, in s."""
        return max(self._late_s, default=0.0)

    async def run(self) -> None:
        """Sleep a moment, over and over, and see how late it wakes."""
        while True:
            due = time.monotonic() + _LOOK_S
            await asyncio.sleep(_LOOK_S)
            self._late_s.append(max(0.0, time.monotonic() - due))
