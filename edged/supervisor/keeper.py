"""Keeps one model as the plan wants it: one coroutine, the only writer of the model's state.

    stopped → starting → ready → draining → stopped
                  ↘ backoff ↙ (died)     failed (cannot work until the next reload)

Others only leave a wish (`reload`, `evict`, `close`, a request in the line) and set `_changed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Literal

from edged import errors
from edged.log import get_logger
from edged.plan import AdapterPlan, ModelPlan
from edged.protocol import Event, Launch, Request
from edged.status import AdapterStatus, ModelStatus, Settings, State
from edged.supervisor.lifecycle import Backoff, Limits, why_leave
from edged.supervisor.line import Line, Ticket
from edged.supervisor.worker_process import BadModelError, WorkerProcess

log = get_logger()

# A worker that leaves for these reasons serves who waits as well: nobody comes after it soon.
_LAST_CALL = ("stopping", "removed", "drained", "evicted", "idle")


class Keeper:
    """One model. `reserve` asks the supervisor for memory, `on_state` tells it of every change."""

    def __init__(
        self,
        plan: ModelPlan,
        *,
        worker_argv: Sequence[str],
        limits: Limits,
        reserve: Callable[[Keeper], bool],
        on_state: Callable[[], None],
    ) -> None:
        self.plan = plan
        self.name = plan.model.name
        self.state: State = "stopped"
        self.error: str | None = None
        self.reserved_bytes = 0  # what its worker, running or about to, may take
        self.last_used = time.monotonic()
        self._worker_argv = worker_argv
        self._limits = limits
        self._reserve = reserve
        self._on_state = on_state
        self._worker: WorkerProcess | None = None
        self._line = Line(self.name)
        self._backoff = Backoff(limits)
        self._since = self.last_used
        self._ready_at = self.last_used
        self._unready_at = self.last_used
        self._restarts = 0
        self._last_words: tuple[str, ...] = ()
        self._evicted = False
        self._unload = False  # by hand: the worker leaves once its requests ended
        self._drained = False  # by hand: no request comes in
        self._retry = False  # a reload came: try again what had failed
        self._over: Literal["stopping", "removed"] | None = None
        self._leave_by: float | None = None  # when draining ends, whoever is still open
        self._changed = asyncio.Event()

    # ── wishes, from anywhere in the loop ──

    def reload(self, plan: ModelPlan) -> None:
        """Follow this plan from now on."""
        if plan.launch != self.plan.launch:
            self._evicted = False
        self.plan = plan
        if self._worker is not None and self._worker.launch == plan.launch:
            self._worker.adapt(plan.files)
            if plan.memory is not None and self.reserved_bytes:
                self.reserved_bytes = plan.memory.total_bytes
        self._retry = True
        self._changed.set()

    def evict(self) -> None:
        """Give the memory back, if no request came in the meantime."""
        self._evicted = True
        self._changed.set()

    def unload(self, *, drain: bool) -> None:
        """Let the worker go when its requests have ended; `drain`: and admit no more."""
        self._drained = self._drained or drain
        self._unload = self._worker is not None
        self._evicted = True
        self._changed.set()

    @property
    def is_unloading(self) -> bool:
        """True until an `unload` is done, or was taken back."""
        return self._unload and self._over is None

    async def load(self) -> None:
        """Have a worker that serves, as a request would; ends a drain."""
        self._drained = self._unload = self._evicted = False
        ticket = self._join()
        try:
            await self._place(ticket)
        finally:
            self._leave(ticket)

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
        if self._worker is not None:
            self._worker.kill(self._why_over())

    def fault(self, error: str) -> None:
        """Take note that the coroutine itself died; only a new keeper can help."""
        self._retry = False
        self._fail(error)

    # ── requests ──

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """See `Supervisor.generate`."""
        ticket = self._join()
        try:
            worker = await self._place(ticket)
            while not worker.alive:  # it died after it was handed out: nothing is lost yet
                self._line.return_to_front(ticket)
                worker = await self._place(ticket)
            async with contextlib.aclosing(worker.generate(request)) as events:
                async for event in events:
                    yield event
        finally:
            self._leave(ticket)

    def _join(self) -> Ticket:
        model = self.plan.model
        if self._over is not None:
            raise errors.ShuttingDown(self._why_over(), retry_after_s=5)
        if self._drained:
            raise errors.ModelDrained(
                f"model {self.name!r} is out of service; `edged load {self.name}` brings it back",
                retry_after_s=60,
            )
        if self.state == "failed" and not self._retry:
            raise errors.ModelFailed(f"model {self.name!r} cannot be used: {self.error}")
        ticket = self._line.join(time.monotonic(), parallel=model.parallel, queue=model.queue)
        self._changed.set()
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        self.last_used = time.monotonic()
        self._line.leave(ticket, self.last_used)
        self._changed.set()

    async def _place(self, ticket: Ticket) -> WorkerProcess:
        while not ticket.worker.done():
            now = time.monotonic()
            if self.state == "ready":
                left_s = ticket.joined + self._limits.queue_wait_s - now
            else:
                # A model that was ready and is not any more gets its time anew.
                left_s = max(ticket.joined, self._unready_at) + self._limits.start_wait_s - now
            if left_s <= 0:
                raise self._too_late()
            await asyncio.wait([ticket.worker], timeout=left_s)
        return ticket.worker.result()

    def _too_late(self) -> errors.EdgedError:
        if self.state == "ready":
            waited_s = self._limits.queue_wait_s
            return errors.ServiceUnavailable(
                f"model {self.name!r} was busy for {waited_s:.0f} s; try again later",
                retry_after_s=30,
            )
        why = f" ({self.error})" if self.error else ""
        return errors.ModelLoading(
            f"model {self.name!r} is {self.state} and was not ready "
            f"within {self._limits.start_wait_s:.0f} s{why}; try again later",
            retry_after_s=30,
        )

    # ── the coroutine ──

    async def run(self) -> None:
        """Keep the model until `remove` or `close`; return when nothing of it is left."""
        try:
            while self._over is None:
                self._changed.clear()
                if self.plan.launch is None:
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
                    await self._run_worker(self.plan.launch)
        finally:
            self._line.dismiss(errors.ShuttingDown(self._why_over(), retry_after_s=5))
            if self._worker is not None:  # only when this coroutine was cancelled
                self._worker.kill(self._why_over())

    def _be_without_worker(self) -> None:
        if self.plan.refusal is not None:
            self._fail(self.plan.refusal)
        else:  # an upstream: the api passes its requests through
            self._be("ready")
            self._line.dismiss(errors.ModelFailed(f"model {self.name!r} is served elsewhere"))

    def _is_wanted(self) -> bool:
        by_plan = self.plan.model.load == "startup" and not self._evicted
        return by_plan or self._line.waiting > 0

    async def _run_worker(self, launch: Launch) -> None:
        self._be("starting")
        self._evicted = False
        if not await self._get_room(launch):
            return
        worker = WorkerProcess(
            launch,
            self._worker_argv,
            adapters=self.plan.files,
            limits=self._limits,
            on_change=self._changed.set,
        )
        self._worker = worker
        try:
            if await self._load(worker):
                await self._serve(worker)
        finally:
            await worker.stop(self._why_left(launch))
            self._last_words = worker.stderr_tail
            self._worker = None
            self._unload = False
            self.reserved_bytes = 0
            self._on_state()  # somebody may wait for the memory
        await self._afterwards(worker)

    async def _get_room(self, launch: Launch) -> bool:
        """Reserve memory, waiting for those who leave; False when there is none to be had."""
        try:
            while self._over is None and self.plan.launch == launch:
                self._changed.clear()
                if self._reserve(self):
                    return True
                await self._wait(self._limits.drain_s)
        except errors.InsufficientMemory as error:
            if error.message != self.error:  # else it is only the next try
                log.warning("model.no_memory", model=self.name, reason=error.message)
            self._line.dismiss(error)
            if self.plan.model.load == "startup":
                await self._back_off(self._limits.memory_retry_s, error.message)
            else:
                self._be("stopped", error.message)
        return False

    async def _load(self, worker: WorkerProcess) -> bool:
        """Return whether it became ready; gives up early when it is not wanted any more."""
        loading = asyncio.create_task(worker.start())
        loading.add_done_callback(lambda _: self._changed.set())
        try:
            while not loading.done():
                self._changed.clear()
                if self._over is not None or self.plan.launch != worker.launch:
                    await worker.stop(self._why_left(worker.launch))
                await self._wait()
        finally:
            loading.cancel()
        failure = loading.exception()
        if failure is None:
            self._ready_at = time.monotonic()
            self._be("ready")
            log.info(
                "worker.ready",
                model=self.name,
                pid=worker.pid,
                engine=worker.launch.engine,
                seconds=round(loading.result().load_s, 2),
            )
            return True
        if isinstance(failure, BadModelError):
            self._fail(str(failure))
        elif not isinstance(failure, errors.WorkerCrashed):
            raise failure
        return False

    async def _serve(self, worker: WorkerProcess) -> None:
        """Hand requests to the worker until it has to leave and its requests ended, or it died."""
        while worker.alive:
            self._changed.clear()
            now = time.monotonic()
            why = self._why_to_leave(worker.launch, now)
            if why is None:
                self._be("ready")
            else:
                if self.state != "draining":
                    log.info("worker.draining", model=self.name, pid=worker.pid, why=why)
                self._be("draining")
                finished = self._line.admitted == 0
                if why in _LAST_CALL:  # nobody comes after it: it serves who came before
                    finished = finished and self._line.waiting == 0
                if finished or now >= self._drain_end():
                    return
            if why is None or why in _LAST_CALL:
                self._line.admit(worker, now, parallel=worker.launch.parallel)
            await self._wait(self._next_look_s(now))

    def _why_to_leave(self, running: Launch, now: float) -> str | None:
        model = self.plan.model
        busy = self._line.admitted > 0 or self._line.waiting > 0
        if (
            busy and self._evicted and not self._unload
        ):  # a request was faster; who wanted the memory asks again
            self._evicted = False
            self._on_state()
        return why_leave(
            over=self._over,
            running=running,
            wanted=self.plan.launch,
            evicted=self._evicted,
            drained=self._drained,
            unloaded=self._unload,
            idle_s=0.0 if busy else now - max(self.last_used, self._since),
            idle_unload_s=None if model.load == "startup" else model.idle_unload_s,
        )

    def _drain_end(self) -> float:
        return self._since + self._limits.drain_s if self._leave_by is None else self._leave_by

    def _next_look_s(self, now: float) -> float | None:
        if self.state == "draining":
            return max(0.0, self._drain_end() - now)
        idle_unload_s = self.plan.model.idle_unload_s
        if self.plan.model.load == "startup" or idle_unload_s is None:
            return None
        return max(1.0, max(self.last_used, self._since) + idle_unload_s - now)

    async def _afterwards(self, worker: WorkerProcess) -> None:
        """Decide what follows on a worker that is gone."""
        if worker.exit is None or worker.exit.asked or self.state == "failed":
            return
        self._restarts += 1
        cause = worker.exit.cause
        if self.state == "starting":
            wait_s = self._backoff.start_failed()
        else:
            wait_s = self._backoff.crashed(time.monotonic() - self._ready_at)
        log.error("worker.died", model=self.name, pid=worker.pid, cause=cause, retry_in_s=wait_s)
        if wait_s is None:
            self._fail(f"{self._limits.bad_starts} starts in a row failed; the last: {cause}")
        else:
            await self._back_off(wait_s, cause)

    async def _back_off(self, wait_s: float, error: str) -> None:
        self._be("backoff", error)
        launch = self.plan.launch
        self._retry = False
        end = time.monotonic() + wait_s
        while (left_s := end - time.monotonic()) > 0 and self._over is None:
            self._changed.clear()
            if self._retry and self.plan.launch != launch:
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
            self._since = time.monotonic()
            if self.state == "ready":
                self._unready_at = self._since
            self.state = state
            self._on_state()

    def _fail(self, error: str) -> None:
        if self.state != "failed" or self.error != error:
            log.error("model.failed", model=self.name, reason=error)
        self._be("failed", error)
        self._line.dismiss(errors.ModelFailed(f"model {self.name!r} cannot be used: {error}"))

    def _why_left(self, launch: Launch) -> str:
        """Return what a request is told that the worker could not finish."""
        if self._over is not None:
            return self._why_over()
        if self.plan.launch != launch:
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
        in_use = self._line.admitted > 0 or self._line.waiting > 0
        return in_use or self.state != "ready" or self._over is not None

    @property
    def is_missing(self) -> bool:
        """True when it should be up since the start, and is not."""
        wanted = self.plan.model.load == "startup" and not self._evicted
        return wanted and self.state != "ready"

    @property
    def is_leaving(self) -> bool:
        """True when its worker's memory comes back by itself."""
        return self._over is not None or self._evicted or self.state == "draining"

    def status(self) -> ModelStatus:
        """Return the model as `/status` shows it."""
        plan, worker = self.plan, self._worker
        rss_bytes = worker.rss_bytes() if worker else None
        estimate = plan.memory.total_bytes if plan.memory else None
        ready = worker.ready if worker else None
        return ModelStatus(
            name=self.name,
            state=self.state,
            engine=plan.engine,
            aliases=plan.model.aliases,
            reasons=plan.reasons,
            error=self.error,
            since_s=round(time.monotonic() - self._since, 3),
            pid=worker.pid if worker else None,
            context=plan.context,
            parallel=plan.model.parallel,
            memory_bytes=rss_bytes if rss_bytes is not None else estimate,
            open=self._line.admitted,
            queued=self._line.waiting,
            restarts=self._restarts,
            progress=worker.loaded_fraction if worker and self.state == "starting" else None,
            load_s=ready.load_s if ready else None,
            build=ready.build if ready else None,
            stats=worker.stats if worker else None,
            stderr_tail=worker.stderr_tail if worker else self._last_words,
            kind=plan.kind,
            settings=Settings.of(worker.launch if worker else plan.launch),
            adapters=self._adapters(),
        )

    def _adapters(self) -> tuple[AdapterStatus, ...]:
        stats = self._worker.stats if self._worker else None
        told = {each.name: each for each in stats.adapters} if stats else {}

        def status(adapter: AdapterPlan) -> AdapterStatus:
            if adapter.refusal is not None:
                return AdapterStatus(adapter.name, "failed", adapter.scale, adapter.refusal)
            found = told.get(adapter.name)
            if found is None:
                return AdapterStatus(
                    adapter.name, "loading" if self._worker else "stopped", adapter.scale
                )
            return AdapterStatus(adapter.name, found.state, adapter.scale, found.error or None)

        return tuple(status(adapter) for adapter in self.plan.adapters)
