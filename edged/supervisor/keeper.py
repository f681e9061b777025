"""Keeps one model as the plan wants it: one coroutine, the only writer of the model's state.

    stopped → starting → ready → draining → stopped
                  ↘ backoff ↙ (died)     failed (cannot work until the next reload)

Others only leave a wish (`wishes.py`: `reload`, `evict`, `close`, a request) and set `_changed`.
A changed model gets a second worker beside the first where both fit (`handover.py`); else the
first leaves before the second comes. Which plan a worker runs is up to `succession.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from edged import errors
from edged.log import get_logger
from edged.plan import ModelPlan
from edged.supervisor.claims import Lease, Memory
from edged.supervisor.lifecycle import LAST_CALL, Backoff, Leave, Limits, Steps, why_leave
from edged.supervisor.proof import ProofError
from edged.supervisor.tenure import Tenure
from edged.supervisor.wishes import Wishes
from edged.supervisor.worker_process import BadModelError

log = get_logger()

_LOOK_S = 1.0  # at what only time changes: the waits for memory


class Keeper(Wishes):
    """The coroutine of one model."""

    def __init__(
        self,
        plan: ModelPlan,
        *,
        worker_argv: Sequence[str],
        limits: Limits,
        memory: Memory,
        on_state: Callable[[], None],
        on_failed_launch: Callable[[], None],
    ) -> None:
        super().__init__(plan, limits=limits, memory=memory, on_state=on_state)
        self._worker_argv = worker_argv
        self._on_failed_launch = on_failed_launch
        self._backoff = Backoff(limits)
        self._steps, self._taught_by = Steps(), plan.launch

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
        if self.plan.is_fetching:  # the daemon fetches its files, and reloads once they are here
            self._be("fetching")
            waits = errors.ModelLoading(f"model {self.name!r} is being fetched; try again later")
            self.entrance.line.dismiss(waits)
        elif self.plan.refusal is not None:
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
            steps=self._steps_of(plan),
            on_change=self._changed.set,
            on_death=self.entrance.died,
            on_failed_launch=self._on_failed_launch,
        )

    def _steps_of(self, plan: ModelPlan) -> Steps:
        """Return what earlier workers of this launch have taught about its steps."""
        if plan.launch != self._taught_by:
            self._steps, self._taught_by = Steps(), plan.launch
        return self._steps

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
                await self._back_off(self._limits.memory_retry_s, error.message, until_asked=True)
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
        if self.state == "starting" and worker.pid is not None:  # else the box is to blame
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

    async def _back_off(self, wait_s: float, error: str, *, until_asked: bool = False) -> None:
        """Wait. `until_asked`: a request that waits may be given what was refused to nobody."""
        self._be("backoff", error)
        launch = self.succession.target.launch
        self._retry = False
        end = time.monotonic() + wait_s
        while (left_s := end - time.monotonic()) > 0 and self._over is None:
            self._changed.clear()
            if until_asked and self.entrance.line.waiting:
                return
            if self._retry and self.succession.target.launch != launch:
                self._backoff.reset()
                return
            await self._wait(left_s)

    async def _wait(self, limit_s: float | None = None) -> None:
        """Wait for a wish; without a limit only where nothing but a wish can matter."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), limit_s)
