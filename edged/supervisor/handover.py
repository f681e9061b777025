"""How a model's worker hands over to another: no request is lost, and none waits where both fit.

The successor loads and proves itself beside the worker that serves. It takes over, and the old one
finishes what it has; or it fails, and the old one never notices. Where both do not fit, `follow`
says so and the keeper stops one before it starts the other. One owner: the model's keeper.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from edged.errors import WorkerCrashed
from edged.log import get_logger
from edged.plan import ModelPlan
from edged.supervisor.claims import Holder, Lease, Memory
from edged.supervisor.line import Line
from edged.supervisor.succession import Succession
from edged.supervisor.tenure import Tenure

log = get_logger()

_LOOK_S = 1.0
_DROPPED = "its place is taken by another"
_CHANGED = "the model was changed and the request did not end in time"


class Verdict(NamedTuple):
    """Who serves from now on, and whether it has to stop before another can start."""

    serving: Tenure
    must_stop: bool = False


class Handover:
    """The workers of one model beside the one that serves.

    `begin` makes a tenure of a plan and a lease, `on_change` is called when there is something to
    follow, `on_rollback` when a successor failed for good.
    """

    def __init__(
        self,
        holder: Holder,
        succession: Succession,
        line: Line,
        memory: Memory,
        *,
        begin: Callable[[ModelPlan, Lease], Tenure],
        on_change: Callable[[], None],
        on_rollback: Callable[[], None],
    ) -> None:
        self.successor: Tenure | None = None  # does not serve yet
        self.retired: set[Tenure] = set()  # finish what they have
        self.recycle: str | None = None  # why a fresh worker is to come in an idle moment
        self._holder = holder
        self._succession = succession
        self._line = line
        self._memory = memory
        self._begin = begin
        self._on_change = on_change
        self._on_rollback = on_rollback

    async def follow(
        self, serving: Tenure, *, going: bool, draining: bool, in_use: bool
    ) -> Verdict:
        """Bring up, judge or drop a successor of `serving`.

        `going`: the model leaves anyway; `draining`: `serving` is already on its way out;
        `in_use`: it has requests, or somebody waits.
        """
        target = self._succession.target
        renew = target.launch != serving.launch
        recycle = self.recycle is not None and not renew and not in_use
        if self.successor is not None:
            wanted = renew or self.recycle is not None
            if going or not wanted or self.successor.launch != target.launch:
                await self.drop_successor()
            elif not self.successor.is_up:
                return Verdict(serving)
            else:
                self._on_change()  # to look again at what is then
                return Verdict(await self._judge(serving, self.successor))
        if going or not (renew or recycle):
            return Verdict(serving)
        if draining or target.launch is None:
            return Verdict(serving, must_stop=True)
        lease = self._memory.beside(self._holder, target)
        if lease is None:
            return Verdict(serving, must_stop=True)
        log.info("worker.beside", model=self._holder.name, pid=serving.worker.pid)
        self.successor = self._begin(target, lease)
        self.successor.bring_up(self._on_change)
        return Verdict(serving)

    async def drop_successor(self) -> None:
        """End a worker that is not to take over any more."""
        successor, self.successor = self.successor, None
        if successor is not None:
            await successor.end(_DROPPED)
            self._on_change()

    def note_line(self) -> None:
        """Take note that a request left: perhaps a retired worker's last one."""
        for each in self.retired:
            if not self._line.held_by(each.worker):
                each.emptied.set()

    async def see_off_all(self, end: float, why: str) -> None:
        """Wait until `end` for those that finish what they have; then stop them."""
        while self.retired:
            left_s = end - time.monotonic()
            if left_s <= 0:
                await asyncio.gather(*(each.end(why) for each in self.retired))
                for each in self.retired:
                    each.emptied.set()  # what its readers have not taken yet does not count
            leaving = [each.leaving for each in self.retired if each.leaving]
            await asyncio.wait(leaving, timeout=max(left_s, _LOOK_S))
            await asyncio.sleep(0)  # their callbacks take them out of the set

    async def _judge(self, serving: Tenure, successor: Tenure) -> Tenure:
        """Let a successor that proved itself take over; learn from one that did not."""
        failure = successor.failure()
        if failure is None:
            self.successor = None
            self._retire(serving)
            return successor
        await self.drop_successor()
        why = str(failure)
        if successor.launch == serving.launch:
            log.error("worker.recycle_failed", model=self._holder.name, reason=why)
            self.recycle = None
        elif self._succession.did_not_come_up(
            successor.launch, why, for_good=not isinstance(failure, WorkerCrashed)
        ):
            self._on_rollback()
        return serving

    def _retire(self, tenure: Tenure) -> None:
        self.retired.add(tenure)
        self.note_line()
        tenure.see_off(_CHANGED, self._is_gone)

    def _is_gone(self, tenure: Tenure) -> None:
        self.retired.discard(tenure)
        self._on_change()
