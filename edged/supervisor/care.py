"""Looks after a worker that serves: that it does not grow without end, and still generates.

A leak shows in private memory, resident or swapped: what the worker reads of its file does not
count. A worker that nobody asks anything for long is asked for one token, so that the next client
is not the one who finds it dead.
"""

from __future__ import annotations

import asyncio
from collections import deque

from edged.config import Model
from edged.config.values import format_bytes
from edged.supervisor.lifecycle import Limits
from edged.supervisor.proof import ProofError, prove
from edged.supervisor.tenure import Tenure

_SETTLED_REQUESTS = 20  # before that a worker touches memory for the first time
_LOOKS = 10  # in a row, idle: one that is about to give memory back is not blamed
_LEAST_GROWTH_BYTES = 256 << 20
_GROWTH = 0.25  # of what is reserved, where nobody said how much is too much


class Growth:
    """Tells a leak from a worker that settles. Pure."""

    def __init__(self) -> None:
        self._settled_bytes: int | None = None
        self._looks: deque[int] = deque(maxlen=_LOOKS)

    def look(self, private_bytes: int, answered: int, bound_bytes: int) -> str | None:
        """Take a look at an idle worker; return what it has grown by when that is too much."""
        if answered < _SETTLED_REQUESTS:
            return None
        self._looks.append(private_bytes)
        if len(self._looks) < _LOOKS:
            return None
        least = min(self._looks)
        if self._settled_bytes is None:
            self._settled_bytes = least
        grown = least - self._settled_bytes
        if grown <= bound_bytes:
            return None
        return (
            f"it grew by {format_bytes(grown)} in {answered} requests; "
            f"{format_bytes(bound_bytes)} are allowed"
        )


class Care:
    """Looks after the worker of one model, whichever that is."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tenure: Tenure | None = None
        self._growth = Growth()
        self._probed_at_s = 0.0  # of idle time
        self._probing: asyncio.Task[None] | None = None

    def look(self, tenure: Tenure, model: Model, idle_s: float) -> str | None:
        """Look once; return why the worker should be replaced by a fresh one, or None.

        `idle_s` is 0 while requests are open.
        """
        if tenure is not self._tenure:
            self._tenure, self._growth, self._probed_at_s = tenure, Growth(), 0.0
        if idle_s == 0.0:
            self._probed_at_s = 0.0
            return None
        if idle_s - self._probed_at_s >= self._limits.probe_idle_s:
            self._probed_at_s = idle_s
            self._probing = asyncio.create_task(self._probe(tenure, model))
        usage = tenure.worker.usage
        if usage is None or model.recycle_growth_bytes == 0:
            return None
        bound = model.recycle_growth_bytes
        if bound is None:
            bound = max(_LEAST_GROWTH_BYTES, int(_GROWTH * tenure.lease.reserved_bytes))
        return self._growth.look(usage.private_bytes, tenure.worker.answered, bound)

    async def _probe(self, tenure: Tenure, model: Model) -> None:
        try:
            await prove(tenure.worker, probe=model.probe, limit_s=self._limits.proof_s)
        except ProofError as error:
            # Where requests are open by now, their progress is the better judge.
            if tenure.worker.alive and tenure.worker.open == 0:
                tenure.worker.give_up(f"it was asked for a sign of life while idle: {error}")
