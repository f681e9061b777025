"""Brings the running workers to the plan and keeps them there.

One `Keeper` per model does the work; here is what concerns several of them: who exists, the
round that looks after all workers, and the end. All of it belongs to the daemon's loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from edged import errors
from edged.log import get_logger
from edged.plan import Diff, ModelPlan, Plan
from edged.protocol import Event, Request
from edged.status import ModelStatus
from edged.supervisor.claims import Memory
from edged.supervisor.keeper import Keeper
from edged.supervisor.ledger import Ledger
from edged.supervisor.lifecycle import Limits
from edged.supervisor.worker_process import WORKER_ARGV

log = get_logger()

_SAVE_S = 30.0
_MEASURE_S = 10.0


class Supervisor:
    """All models of the plan in force. `worker_argv` gets the socket's fd number appended."""

    def __init__(
        self,
        *,
        worker_argv: Sequence[str] = WORKER_ARGV,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        ledger: Ledger | None = None,
    ) -> None:
        self.ledger = ledger or Ledger()
        self.on_failed_launch: Callable[[], None] = lambda: None  # whoever wants to know
        self._worker_argv = worker_argv
        self._limits = limits
        self._memory = Memory(self.ledger, limits)
        self._keepers: dict[str, Keeper] = {}
        self._leaving: set[Keeper] = set()  # removed models whose worker still drains
        self._tasks: dict[asyncio.Task[None], Keeper] = {}
        self._rounds: tuple[asyncio.Task[None], ...] = ()
        self._moved = asyncio.Event()

    async def apply(self, plan: Plan, diff: Diff) -> None:
        """Make `plan` the wanted state; returns at once, drains and loads go on by themselves.

        Unchanged models keep their worker and their requests; what had failed is tried again.
        """
        self._memory.follow(plan)
        for name in diff.removed:
            keeper = self._keepers.pop(name)
            self._leaving.add(keeper)
            keeper.remove()
        running = set(self._tasks.values())
        for name, model_plan in plan.models.items():
            old = self._keepers.get(name)
            if old is not None and old in running:
                old.reload(model_plan)
            else:
                self._keepers[name] = self._add(model_plan)
        self._keepers = {name: self._keepers[name] for name in plan.models}  # the file's order
        if not self._rounds:
            self._rounds = (
                asyncio.create_task(self._look_after(), name="supervisor's round"),
                asyncio.create_task(self._hold(), name="supervisor's watch over memory"),
            )

    def generate(self, model: str, request: Request) -> AsyncGenerator[Event, None]:
        """Yield the events of one generation: `Started`, `Delta`s, one `Finish` or `Failed`.

        Of a `Call`: its one `Reply` or `Failed`.

        `model` is a name, not an alias. Loads the model if needed and waits for a free place.
        Raises, before the first event only: ModelNotFound, ModelFailed, QueueFull, ModelLoading,
        InsufficientMemory, PoisonedRequest, ModelDrained, ShuttingDown. Closing the iterator aborts
        the generation.
        """
        return self._keeper(model).generate(request)

    async def load(self, model: str) -> None:
        """Load a model as a request would, end its drain, return when it serves.

        Raises what `generate` raises before its first event.
        """
        await self._keeper(model).load()

    async def unload(self, model: str, *, drain: bool) -> None:
        """Stop a model's worker when its requests have ended; return when it is gone.

        `drain`: and refuse requests until `load`. Raises ModelNotFound.
        """
        keeper = self._keeper(model)
        keeper.unload(drain=drain)
        while keeper.is_unloading:
            self._moved.clear()
            await self._moved.wait()

    def _keeper(self, model: str) -> Keeper:
        keeper = self._keepers.get(model)
        if keeper is None:
            raise errors.ModelNotFound(f"no model is called {model!r}", param="model")
        return keeper

    def can_serve(self, model: str) -> bool:
        """Return whether a worker of ours may serve it, be it with earlier settings."""
        keeper = self._keepers.get(model)
        return keeper is not None and keeper.succession.target.launch is not None

    def snapshot(self) -> tuple[ModelStatus, ...]:
        """Return every model of the plan, in its order."""
        return tuple(keeper.status() for keeper in self._keepers.values())

    async def settled(self) -> None:
        """Return when no startup model is on its first way up: each is ready or has a problem."""
        while any(keeper.is_on_its_way for keeper in self._keepers.values()):
            self._moved.clear()
            await self._moved.wait()

    def missing(self) -> list[str]:
        """Return one line for each startup model that does not serve."""
        return [
            f"{keeper.name} is {keeper.state}" + (f": {keeper.error}" if keeper.error else "")
            for keeper in self._keepers.values()
            if keeper.is_missing
        ]

    async def shutdown(self, limit_s: float) -> None:
        """Admit nothing, let open requests finish within `limit_s`, then stop every worker."""
        for keeper in self._tasks.values():
            keeper.close(time.monotonic() + limit_s)
        if self._tasks:
            # Every keeper keeps its own limits; this one only guards against a mistake of ours.
            spare_s = limit_s + 2 * self._limits.stop_s + 30
            _, late = await asyncio.wait(set(self._tasks), timeout=spare_s)
            for task in late:
                log.error("supervisor.straggler", model=self._tasks[task].name)
                self._tasks[task].kill()
                task.cancel()
        for each in self._rounds:
            each.cancel()
        await self.ledger.save()

    def kill(self) -> None:
        """End every worker at once; a `shutdown` under way then returns."""
        for keeper in self._tasks.values():
            keeper.kill()

    # ── keepers ──

    def _add(self, plan: ModelPlan) -> Keeper:
        keeper = Keeper(
            plan,
            worker_argv=self._worker_argv,
            limits=self._limits,
            memory=self._memory,
            on_state=self._on_state,
            on_failed_launch=self._tell_failed_launch,
        )
        task = asyncio.create_task(keeper.run(), name=f"keeper {keeper.name}")
        self._tasks[task] = keeper
        task.add_done_callback(self._done)
        return keeper

    def _tell_failed_launch(self) -> None:
        self.on_failed_launch()

    def _done(self, task: asyncio.Task[None]) -> None:
        keeper = self._tasks.pop(task)
        self._leaving.discard(keeper)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of ours. The model is lost until the next reload, the others go on.
            log.error("keeper.fault", model=keeper.name, exc_info=error)
            keeper.fault("an internal fault of edged (see the log); reload to try again")
        self._on_state()

    def _on_state(self) -> None:
        self._moved.set()
        for keeper in self._tasks.values():
            if keeper.state == "starting":
                keeper.wake()

    # ── the round ──

    async def _look_after(self) -> None:
        """Look at every worker again and again: each second, and more rarely where it costs."""
        measure_at = save_at = time.monotonic()
        while True:
            await asyncio.sleep(self._limits.round_s)
            now = time.monotonic()
            try:
                self._memory.tend(now)
                for keeper in tuple(self._tasks.values()):
                    keeper.tend(now)
                if now >= measure_at:
                    measure_at = now + _MEASURE_S
                    await self._measure()
                if now >= save_at:
                    save_at = now + _SAVE_S
                    await self.ledger.save()
            except Exception:
                # Our own fault must not end the round: without it nobody looks after the memory.
                log.exception("supervisor.fault")

    async def _hold(self) -> None:
        """Keep all workers together within the memory of the box: it may be gone in a second."""
        while True:
            limits = self._limits
            await asyncio.sleep(limits.watch_s if self._memory.may_move else limits.round_s)
            try:
                await self._memory.hold()
            except Exception:
                log.exception("supervisor.fault")

    async def _measure(self) -> None:
        for keeper in tuple(self._tasks.values()):
            if keeper.tenure is not None and keeper.state == "ready":
                await keeper.tenure.measure()
