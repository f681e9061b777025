"""The memory of the box in use: who holds a lease of it, who claims some, who has to leave for it.

The decisions are in `memory.py`; here they meet the keepers. One owner: the supervisor, in the
daemon's loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Protocol

from msgspec import Struct

from edged.config.values import format_bytes
from edged.errors import InsufficientMemory
from edged.log import get_logger
from edged.plan import ModelPlan, Plan
from edged.plan.places import MAIN, Sizes, most
from edged.supervisor import memory
from edged.supervisor.ledger import Ledger
from edged.supervisor.lifecycle import Limits
from edged.supervisor.memory import Claim, Resident
from edged.supervisor.worker_process import WorkerProcess

log = get_logger()

_BEARABLE = 1.01  # of the budget; a page more is nobody's fault


class Holder(Protocol):
    """A keeper, as far as memory is concerned."""

    name: str

    @property
    def is_busy(self) -> bool: ...  # noqa: D102
    @property
    def is_leaving(self) -> bool: ...  # noqa: D102
    @property
    def pinned(self) -> bool: ...  # noqa: D102
    @property
    def last_used(self) -> float: ...  # noqa: D102
    @property
    def waiting_since(self) -> float | None: ...  # noqa: D102

    def evict(self) -> None: ...  # noqa: D102
    def give_way(self) -> None: ...  # noqa: D102


class Lease(Struct, eq=False):
    """Memory that one worker may take, and what it was seen to take."""

    holder: Holder
    reserved: Sizes
    worker: WorkerProcess | None = None
    leaving: bool = False  # its worker only finishes what it has
    load_s: float = 0.0
    ready_at: float = 0.0
    peak_bytes: int = 0  # PSS and swap
    gpu_bytes: Sizes = {}  # at most, by GPU

    @property
    def reserved_bytes(self) -> int:
        """What is reserved of main memory."""
        return self.reserved.get(MAIN, 0)

    @property
    def bytes(self) -> int:
        """What nobody else can have of it: as reserved, or more where the worker took more."""
        return max(self.reserved_bytes, self.taken_bytes)

    @property
    def sizes(self) -> Sizes:
        """The same of every place."""
        return {**most(self.reserved, self.gpu_bytes), MAIN: self.bytes}

    @property
    def taken_bytes(self) -> int:
        """What its worker takes now."""
        return (self.worker.memory_bytes() or 0) if self.worker else 0


class Memory:
    """All leases and claims; what is there to be had and by which build: `follow`."""

    def __init__(self, ledger: Ledger, limits: Limits) -> None:
        self.ledger = ledger
        self.budgets: Sizes = {MAIN: 0}
        self.build: str | None = None
        self.leases: set[Lease] = set()
        self._limits = limits
        self._claims: dict[Holder, Claim] = {}
        self._shared: tuple[frozenset[int | None], int] = (frozenset(), 0)  # by which processes

    @property
    def budget_bytes(self) -> int:
        """Main memory for all workers together."""
        return self.budgets[MAIN]

    @property
    def has_gpus(self) -> bool:
        """True where NVML tells of memory that workers may take."""
        return len(self.budgets) > 1

    def follow(self, plan: Plan) -> None:
        """Take the budgets and the build of this plan from now on."""
        self.budgets = plan.budgets
        self.build = plan.hardware.engines.llamacpp

    def wanted(self, plan: ModelPlan) -> Sizes:
        """Return what a worker of `plan` will take where.

        One that was seen to take more of a GPU than models may has run all the same, alone.
        """
        sizes = self.ledger.wanted(plan, self.build)
        of_gpus = {place: size for place, size in self.budgets.items() if place != MAIN}
        return {place: min(size, of_gpus.get(place, size)) for place, size in sizes.items()}

    def claim(self, holder: Holder, plan: ModelPlan) -> Lease | None:
        """Return a lease for a worker of `plan`, or None: ask again when something has moved.

        Asks others to leave where that helps. Raises InsufficientMemory when waiting is in vain,
        or has been for too long.
        """
        now = time.monotonic()
        wanted = self.wanted(plan)
        before = self._claims.get(holder)
        claim = Claim(holder.name, wanted, before.asked_at if before else now, holder.waiting_since)
        self._claims[holder] = claim
        residents = self._residents()
        others = [each for each_holder, each in self._claims.items() if each_holder is not holder]
        try:
            decision = memory.decide(
                claim,
                others,
                residents,
                budgets=self.budgets,
                now=now,
                limits=self._limits,
            )
            waited_s = now - claim.asked_at
            if not decision.granted and waited_s >= self._limits.memory_wait_s:
                raise memory.insufficient(wanted, residents, self.budgets, waited_s)
        except InsufficientMemory:
            self.withdraw(holder)
            raise
        if decision.granted:
            self.withdraw(holder)
            return self._lease(holder, plan, wanted)
        for each in self._active():
            if each.name in decision.evict and not each.is_busy:
                log.info("model.evict", model=each.name, room_for=holder.name)
                each.evict()
            elif each.name in decision.give_way:
                log.info("model.give_way", model=each.name, room_for=holder.name)
                each.give_way()
        return None

    def why_waiting(self, holder: Holder) -> str:
        """Return what a claim waits for, in words."""
        claim = self._claims.get(holder)
        wanted = claim.sizes if claim else {}
        why = memory.insufficient(wanted, self._residents(), self.budgets).message
        return f"waits for memory: {why}"

    def withdraw(self, holder: Holder) -> None:
        """Forget the claim of a model that is not wanted any more."""
        self._claims.pop(holder, None)

    def beside(self, holder: Holder, plan: ModelPlan) -> Lease | None:
        """Return a lease beside the one that `holder` has, if nobody has to leave for it."""
        wanted, claims = self.wanted(plan), self._claims.values()
        fits = memory.room_beside(wanted, claims, self._residents(), self.budgets)
        return self._lease(holder, plan, wanted) if fits else None

    def release(self, lease: Lease) -> None:
        """Take the memory back: its worker is gone."""
        self.leases.discard(lease)

    def tend(self, now: float) -> None:
        """Let idle models leave when others grew."""
        leaving = memory.over_budget(self._residents(), self.budget_bytes, now)
        for each in self._active():
            if each.name in leaving and not each.is_busy:
                log.warning("model.evict", model=each.name, reason="others grew")
                each.evict()

    @property
    def may_move(self) -> bool:
        """True while a worker loads or has requests: an idle one takes no more than it has."""
        return any(
            lease.worker is not None
            and lease.worker.alive
            and (lease.worker.open > 0 or lease.worker.ready is None)
            for lease in self.leases
        )

    async def hold(self) -> None:
        """End the worker that outgrew its lease when all together take more than the box can bear.

        At once, and whoever else is about to leave: one that grows is faster than those. A page
        that several share counts once, which takes longer to find out and is done only when needed.
        """
        bearable = int(_BEARABLE * self.budget_bytes)
        held = {lease: lease.worker for lease in self.leases if lease.worker is not None}
        resident = sum(lease.taken_bytes for lease in held)
        if resident <= bearable or any(worker.is_condemned for worker in held.values()):
            return  # within, or what is too much comes back in a moment
        pids = frozenset(worker.pid for worker in held.values())
        known_of, shared = self._shared
        if known_of == pids and resident - shared <= bearable:
            return
        exact = await asyncio.gather(*(worker.proportional_bytes() for worker in held.values()))
        self._shared = pids, max(0, resident - sum(exact))
        if sum(exact) <= bearable:
            return
        lease, taken = max(
            zip(held, exact, strict=True), key=lambda each: each[1] - each[0].reserved_bytes
        )
        if taken <= lease.reserved_bytes:
            return
        had, has = format_bytes(lease.reserved_bytes), format_bytes(taken)
        held[lease].give_up(
            f"it grew to {has} where {had} were reserved, and all models together may take "
            f"{format_bytes(self.budget_bytes)}"
        )

    def _lease(self, holder: Holder, plan: ModelPlan, wanted: Sizes) -> Lease:
        load_s = self.ledger.load_s(plan, self.build)
        lease = Lease(holder, wanted, load_s=load_s, ready_at=time.monotonic())
        self.leases.add(lease)
        return lease

    def _active(self) -> set[Holder]:
        return {lease.holder for lease in self.leases if not lease.leaving}

    def _residents(self) -> list[Resident]:
        return list(self._each_resident())

    def _each_resident(self) -> Iterator[Resident]:
        for lease in self.leases:
            holder = lease.holder
            yield Resident(
                model=holder.name,
                sizes=lease.sizes,
                busy=holder.is_busy,
                pinned=holder.pinned,
                last_used=holder.last_used,
                load_s=lease.load_s,
                ready_at=lease.ready_at,
                leaving=lease.leaving or holder.is_leaving,
            )
