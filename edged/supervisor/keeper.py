"""Keeps one model as the plan wants it: one coroutine, the only writer of the model's state.

    stopped → starting → ready → draining → stopped
                  ↘ backoff ↙ (died)     failed (cannot work until the next reload)

Others only leave a wish (`reload`, `evict`, `close`, a request in the line) and set `_changed`.
A changed model gets a second worker beside the first where both fit (`handover.py`); else the
first leaves before the second comes. Which plan a worker runs is up to `succession.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Literal

from edged import errors
from edged.log import get_logger
from edged.plan import ModelPlan
from edged.protocol import Event, Request
from edged.status import ModelStatus, State
from edged.supervisor import shown
from edged.supervisor.claims import Lease, Memory
from edged.supervisor.entrance import Entrance
from edged.supervisor.handover import Handover
from edged.supervisor.lifecycle import LAST_CALL, Backoff, Leave, Limits, why_leave
from edged.supervisor.proof import ProofError
from edged.supervisor.succession import Succession
from edged.supervisor.tenure import Tenure
from edged.supervisor.worker_process import BadModelError

log = get_logger()

_LOOK_S = 1.0  # at what only time changes: the waits for memory


class Keeper:
    """One model. `memory` is the box's, `on_state` tells the supervisor of every change."""

    def __init__(
        self,
        plan: ModelPlan,
        *,
        worker_argv: Sequence[str],
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
        self._worker_argv = worker_argv
        self._limits = limits
        self._memory = memory
        self._on_state = on_state
        self._backoff = Backoff(limits)
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
        """Look after its worker; called about once a second."""

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

    # ── the coroutine ──

    async def run(self) -> None:
        """Keep the model until `remove` or `close`; return when nothing of it is left."""
        try:
            while self._over is None:
                self._changed.clear()
                target = self.succession.target
                if target.launch is None:
                    self._retry = False
                    self._be_without_worker()
                    await self._wait()
                elif self.state == "failed" and not self._retry:
                    await self._wait()
                elif not self._is_wanted():
                    self._be("stopped")
                    await self._wait()
                else:
                    self._retry = False
                    await self._serve_with(target)
            await self.handover.see_off_all(self._drain_end(), self._why_over())
        finally:
            self.entrance.line.dismiss(errors.ShuttingDown(self._why_over(), retry_after_s=5))
            for each in self._tenures:  # only when this coroutine was cancelled
                each.worker.kill(self._why_over())

    def _be_without_worker(self) -> None:
        if self.plan.refusal is not None:
            self._fail(self.plan.refusal)
        else:  # an upstream: the api passes its requests through
            self._be("ready")
            elsewhere = errors.ModelFailed(f"model {self.name!r} is served elsewhere")
            self.entrance.line.dismiss(elsewhere)

    def _is_wanted(self) -> bool:
        by_plan = self.plan.model.load == "startup" and not self._evicted and not self._drained
        return by_plan or self.entrance.line.waiting > 0

    async def _serve_with(self, plan: ModelPlan) -> None:
        """Start a worker of `plan` and serve with it, and with whoever takes over from it."""
        self._be("starting")
        self._evicted = False
        lease = await self._get_room(plan)
        if lease is None:
            return
        self.tenure = self._begin(plan, lease)
        self._on_state()
        try:
            if await self._load(self.tenure):
                await self._serve()
        finally:
            await self.handover.drop_successor()
            last = self.tenure
            await last.end(self._why_left(last.plan))
            self.last_words = last.worker.stderr_tail
            self.tenure = None
            self._unload = False
            self._on_state()  # somebody may wait for the memory
        await self._afterwards(last)

    def _begin(self, plan: ModelPlan, lease: Lease) -> Tenure:
        return Tenure(
            plan,
            lease,
            self._memory,
            worker_argv=self._worker_argv,
            limits=self._limits,
            on_change=self._changed.set,
            on_death=self.entrance.died,
        )

    async def _get_room(self, plan: ModelPlan) -> Lease | None:
        """Reserve memory, waiting for those who leave; None when there is none to be had."""
        try:
            while self._over is None and self.succession.target.launch == plan.launch:
                self._changed.clear()
                lease = self._memory.claim(self, plan)
                if lease is not None:
                    return lease
                self._be("starting", self._memory.why_waiting(self))
                await self._wait(_LOOK_S)
                if not self._is_wanted():
                    break
        except errors.InsufficientMemory as error:
            if error.message != self.error:  # else it is only the next try
                log.warning("model.no_memory", model=self.name, reason=error.message)
            self.entrance.line.dismiss(error)
            if self.plan.model.load == "startup":
                await self._back_off(self._limits.memory_retry_s, error.message)
            else:
                self._be("stopped", error.message)
        finally:
            self._memory.withdraw(self)
        return None

    async def _load(self, tenure: Tenure) -> bool:
        """Return whether it became ready; gives up early when it is not wanted any more."""
        launch = tenure.launch
        proof = self.succession.is_on_trial(launch)
        loading = asyncio.create_task(tenure.start(proof=proof))
        loading.add_done_callback(lambda _: self._changed.set())
        try:
            while not loading.done():
                self._changed.clear()
                if self._over is not None or self.succession.target.launch != launch:
                    await tenure.worker.stop(self._why_left(tenure.plan))
                await self._wait()
        finally:
            loading.cancel()
        failure = loading.exception()
        if failure is None:
            self._take_office(tenure)
            return True
        if isinstance(failure, BadModelError | ProofError):
            if self.succession.failed(launch, str(failure)):
                self._tell_rolled_back()
            else:
                self._fail(str(failure))
        elif not isinstance(failure, errors.WorkerCrashed):
            raise failure
        return False

    def _take_office(self, tenure: Tenure) -> None:
        """Let the line's requests go to this worker from now on."""
        self.succession.ready(tenure.plan, time.monotonic())
        self.handover.recycle = None
        self._be("ready")
        log.info(
            "worker.ready",
            model=self.name,
            pid=tenure.worker.pid,
            engine=tenure.launch.engine,
            seconds=round(tenure.load_s, 2),
        )

    async def _serve(self) -> None:
        """Hand requests to the worker until it has to leave and its requests ended, or it died."""
        line = self.entrance.line
        while self.tenure is not None and self.tenure.worker.alive:
            self._changed.clear()
            now = time.monotonic()
            tenure, must_stop = await self.handover.follow(
                self.tenure,
                going=self._over is not None or self._evicted,
                draining=self.state == "draining",
                in_use=self._in_use,
            )
            if tenure is not self.tenure:
                self.tenure = tenure
                self._take_office(tenure)
            why = self._why_to_leave(must_stop=must_stop, now=now)
            if why is None:
                self._be("ready")
            else:
                if self.state != "draining":
                    log.info("worker.draining", model=self.name, pid=tenure.worker.pid, why=why)
                self._be("draining")
                finished = not line.held_by(tenure.worker)
                if why in LAST_CALL:  # nobody comes after it: it serves who came before
                    finished = finished and line.waiting == 0
                if finished or now >= self._drain_end():
                    return
            if why is None or why in LAST_CALL:
                line.admit(tenure.worker, now, parallel=tenure.launch.parallel)
            await self._wait(self._next_look_s(tenure, now))

    # ── when, why, what then ──

    def _tell_rolled_back(self) -> None:
        log.error(
            "model.rolled_back",
            model=self.name,
            reason=self.succession.rolled_back,
            meaning="its earlier settings stay in force until models.toml or the file is mended",
        )
        self._on_state()

    @property
    def _tenures(self) -> list[Tenure]:
        found = (self.tenure, self.handover.successor, *self.handover.retired)
        return [each for each in found if each is not None]

    @property
    def _in_use(self) -> bool:
        return self.entrance.line.admitted > 0 or self.entrance.line.waiting > 0

    def _why_to_leave(self, *, must_stop: bool, now: float) -> Leave | None:
        model = self.plan.model
        if self._in_use and self._evicted and not self._unload:
            self._evicted = False  # a request was faster; who wanted the memory asks again
            self._on_state()
        return why_leave(
            over=self._over,
            replaced=must_stop,
            drained=self._drained,
            unloaded=self._unload,
            evicted=self._evicted,
            idle_s=0.0 if self._in_use else now - max(self.last_used, self.since),
            idle_unload_s=None if model.load == "startup" else model.idle_unload_s,
        )

    def _drain_end(self) -> float:
        return self.since + self._limits.drain_s if self._leave_by is None else self._leave_by

    def _next_look_s(self, tenure: Tenure, now: float) -> float | None:
        if self.state == "draining":
            return max(0.0, self._drain_end() - now)
        looks = [self.succession.look(tenure.launch, now)]
        idle_unload_s = self.plan.model.idle_unload_s
        if self.plan.model.load != "startup" and idle_unload_s is not None:
            looks.append(max(self.last_used, self.since) + idle_unload_s - now)
        return max(1.0, min(found)) if (found := [s for s in looks if s is not None]) else None

    async def _afterwards(self, tenure: Tenure) -> None:
        """Decide what follows on a worker that is gone."""
        worker = tenure.worker
        if worker.exit is None or worker.exit.asked or self.state == "failed":
            return
        self.restarts += 1
        cause = worker.exit.cause
        if self.succession.crashed(tenure.launch, cause):
            self._tell_rolled_back()
            return
        if self.state == "starting":
            wait_s = self._backoff.start_failed()
        else:
            wait_s = self._backoff.crashed(time.monotonic() - tenure.lease.ready_at)
        log.error(
            "worker.died",
            model=self.name,
            pid=worker.pid,
            cause=cause,
            retry_in_s=wait_s,
            last_words=list(worker.stderr_tail[-5:]) or None,
        )
        if wait_s is None:
            self._fail(f"{self._limits.bad_starts} starts in a row failed; the last: {cause}")
        else:
            await self._back_off(wait_s, cause)

    async def _back_off(self, wait_s: float, error: str) -> None:
        self._be("backoff", error)
        launch = self.succession.target.launch
        self._retry = False
        end = time.monotonic() + wait_s
        while (left_s := end - time.monotonic()) > 0 and self._over is None:
            self._changed.clear()
            if self._retry and self.succession.target.launch != launch:
                self._backoff.reset()
                return
            await self._wait(left_s)

    async def _wait(self, limit_s: float | None = None) -> None:
        """Wait for a wish; without a limit only where nothing but a wish can matter."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), limit_s)

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
