"""One model as everybody but its coroutine sees it: wishes, requests, figures.

A wish is a flag that somebody in the daemon's loop sets; the keeper's coroutine (`keeper.py`),
woken by `_changed`, is the only one to act on it and to write the state.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from typing import Literal

from edged import errors
from edged.log import get_logger
from edged.plan import ModelPlan
from edged.protocol import Event, Request
from edged.status import ModelStatus, State
from edged.supervisor import shown
from edged.supervisor.care import Care
from edged.supervisor.claims import Lease, Memory
from edged.supervisor.entrance import Entrance
from edged.supervisor.handover import Handover
from edged.supervisor.lifecycle import Limits
from edged.supervisor.succession import Succession
from edged.supervisor.tenure import Tenure

log = get_logger()


class Wishes:
    """One model. `memory` is the box's, `on_state` tells the supervisor of every change."""

    def __init__(
        self,
        plan: ModelPlan,
        *,
        limits: Limits,
        memory: Memory,
        on_state: Callable[[], None],
    ) -> None:
        self.name = plan.model.name
        self.state: State = "stopped"
        self.error: str | None = None
        self.since = time.monotonic()  # it is in this state
        self.restarts = 0
        self.last_words: tuple[str, ...] = ()
        self.succession = Succession(plan, limits)
        self.entrance = Entrance(self.name, limits, self._came_or_left, self._why_closed)
        self.tenure: Tenure | None = None  # of the worker that serves, or is about to
        self._care = Care(limits)
        self._limits = limits
        self._memory = memory
        self._on_state = on_state
        self._evicted = False
        self._unload = False  # the worker leaves as soon as what it has is finished
        self._drained = False  # by hand: no request comes in
        self._retry = False  # a reload came: try again what had failed
        self._over: Literal["stopping", "removed"] | None = None
        self._leave_by: float | None = None  # when draining ends, whoever is still open
        self._changed = asyncio.Event()
        self.handover = Handover(
            self,
            self.succession,
            self.entrance.line,
            memory,
            begin=self._begin,
            on_change=self._moved,
            on_rollback=self._tell_rolled_back,
        )

    @property
    def plan(self) -> ModelPlan:
        """The plan that models.toml wants."""
        return self.succession.wanted

    # ── wishes, from anywhere in the loop ──

    def reload(self, plan: ModelPlan) -> None:
        """Follow this plan from now on."""
        if plan.launch != self.plan.launch:
            self._evicted = False
        self.succession.reload(plan, self._memory.budget_bytes)
        if self.succession.rolled_back is not None:
            self._tell_rolled_back()
        target = self.succession.target
        for each in (self.tenure, self.handover.successor):
            if each is not None and each.plan.launch == target.launch:
                each.adapt(target)
        self._retry = True
        self._changed.set()

    def evict(self) -> None:
        """Give the memory back, if no request came in the meantime."""
        self._evicted = True
        self._changed.set()

    def give_way(self) -> None:
        """Give the memory back once what the worker has is finished; who waits goes on waiting."""
        self._unload = self.tenure is not None
        self._evicted = True
        self._changed.set()

    def unload(self, *, drain: bool) -> None:
        """As `give_way`, by hand; `drain`: and admit no more."""
        self._drained = self._drained or drain
        self.give_way()

    async def load(self) -> None:
        """Have a worker that serves, as a request would; ends a drain."""
        self._drained = self._unload = self._evicted = False
        await self.entrance.wait(self.plan.model)

    def recycle(self, why: str) -> None:
        """Have a fresh worker take over in an idle moment."""
        if self.handover.recycle is None:
            log.warning("worker.recycle", model=self.name, why=why)
        self.handover.recycle = why
        self._changed.set()

    def tend(self, now: float) -> None:
        """Look after the worker that serves; called about once a second."""
        if self.tenure is None or self.state != "ready" or self.handover.successor is not None:
            return
        idle_s = 0.0 if self._in_use else now - max(self.last_used, self.since)
        why = self._care.look(self.tenure, self.plan.model, idle_s)
        if why is not None:
            self.recycle(why)

    def wake(self) -> None:
        """Look again: memory was freed."""
        self._changed.set()

    def remove(self) -> None:
        """Leave for good: the model is gone from the configuration. Open requests may finish."""
        self._over = "removed"
        self._changed.set()

    def close(self, leave_by: float) -> None:
        """Leave for good: the daemon stops. Requests that can finish by `leave_by` may."""
        self._over = "stopping"
        self._leave_by = leave_by
        self._changed.set()

    def kill(self) -> None:
        """Leave for good, at once."""
        self.close(0.0)
        for each in self._tenures:
            each.worker.kill(self._why_over())

    def fault(self, error: str) -> None:
        """Take note that the coroutine itself died; only a new keeper can help."""
        self._retry = False
        self._fail(error)

    # ── requests ──

    def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """See `Supervisor.generate`."""
        return self.entrance.generate(self.plan.model, request)

    def _why_closed(self) -> errors.EdgedError | None:
        if self._over is not None:
            return errors.ShuttingDown(self._why_over(), retry_after_s=5)
        if self._drained:
            return errors.ModelDrained(
                f"model {self.name!r} is out of service; `edged load {self.name}` brings it back",
                retry_after_s=60,
            )
        if self.state == "failed" and not self._retry:
            return errors.ModelFailed(f"model {self.name!r} cannot be used: {self.error}")
        return None

    def _came_or_left(self) -> None:
        self.handover.note_line()
        self._changed.set()

    def _moved(self) -> None:
        self._on_state()  # memory may have come back
        self._changed.set()

    # ── the state, for the coroutine to write ──

    @abstractmethod
    def _begin(self, plan: ModelPlan, lease: Lease) -> Tenure:
        """Return a tenure that was not started yet."""

    def _be(self, state: State, error: str | None = None) -> None:
        if error is not None or state == "ready":
            self.error = error
        if state != self.state:
            self.since = time.monotonic()
            self.state = state
            self._on_state()
        self.entrance.note(state, self.error)

    def _fail(self, error: str) -> None:
        if (newest := self.succession.rolled_back) is not None:
            error = f"{newest}; and its earlier settings do not work any more: {error}"
        if self.state != "failed" or self.error != error:
            log.error("model.failed", model=self.name, reason=error)
        self._be("failed", error)
        cannot = errors.ModelFailed(f"model {self.name!r} cannot be used: {error}")
        self.entrance.line.dismiss(cannot)

    def _why_left(self, plan: ModelPlan) -> str:
        """Return what a request is told that the worker could not finish."""
        if self._over is not None:
            return self._why_over()
        if self.succession.target.launch != plan.launch:
            return f"model {self.name!r} was changed and the request did not end in time"
        return f"model {self.name!r} was unloaded"

    def _why_over(self) -> str:
        if self._over == "removed":
            return f"model {self.name!r} was removed from the configuration"
        return "edged is stopping; try again in a moment"

    def _tell_rolled_back(self) -> None:
        log.error(
            "model.rolled_back",
            model=self.name,
            reason=self.succession.rolled_back,
            meaning="its earlier settings stay in force until models.toml or the file is mended",
        )
        self._on_state()

    # ── what is seen from outside ──

    @property
    def is_busy(self) -> bool:
        """True when its worker must not be evicted."""
        return self._in_use or self.state != "ready" or self._over is not None

    @property
    def is_missing(self) -> bool:
        """True when it should be up since the start, and is not."""
        wanted = self.plan.model.load == "startup" and not self._evicted and not self._drained
        return wanted and self.state != "ready"

    @property
    def is_on_its_way(self) -> bool:
        """True when it may become ready before long; files may take hours to be fetched."""
        return self.is_missing and not self.error and not self.plan.is_fetching

    @property
    def is_leaving(self) -> bool:
        """True when its worker's memory comes back by itself."""
        return self._over is not None or self._evicted or self.state == "draining"

    @property
    def is_unloading(self) -> bool:
        """True until an `unload` is done, or was taken back."""
        return self._unload and self._over is None

    @property
    def pinned(self) -> bool:
        """True when it leaves for nobody."""
        return self.plan.model.pin

    @property
    def last_used(self) -> float:
        """When the last request ended, on the monotonic clock."""
        return self.entrance.last_used

    @property
    def waiting_since(self) -> float | None:
        """When the oldest waiting request came; None while nobody waits."""
        return self.entrance.line.waiting_since

    def status(self) -> ModelStatus:
        """Return the model as `/status` shows it."""
        return shown.status_of(self)

    @property
    def _tenures(self) -> list[Tenure]:
        found = (self.tenure, self.handover.successor, *self.handover.retired)
        return [each for each in found if each is not None]

    @property
    def _in_use(self) -> bool:
        return self.entrance.line.admitted > 0 or self.entrance.line.waiting > 0
