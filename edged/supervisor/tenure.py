"""The time of one worker with a model: its plan, its memory, from the start to the last request.

Where a model has two workers, each has its own tenure; the keeper says which one serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from edged import errors
from edged.hardware import nvml
from edged.plan import ModelPlan
from edged.plan.places import gpu, most
from edged.protocol import Launch
from edged.supervisor import gpu_release
from edged.supervisor.claims import Lease, Memory
from edged.supervisor.lifecycle import Limits, Steps
from edged.supervisor.proof import ProofError, prove
from edged.supervisor.worker_process import BadModelError, WorkerProcess


class Tenure:
    """One worker. Whoever begins one ends it with `end` or `see_off`, which free its memory."""

    def __init__(
        self,
        plan: ModelPlan,
        lease: Lease,
        memory: Memory,
        *,
        worker_argv: Sequence[str],
        limits: Limits,
        steps: Steps,
        on_change: Callable[[], None],
        on_death: Callable[[WorkerProcess], None],
        on_failed_launch: Callable[[], None],
    ) -> None:
        assert plan.launch is not None
        self.plan = plan
        self.launch: Launch = plan.launch
        self.lease = lease
        self.load_s = 0.0
        self.leaving: asyncio.Task[None] | None = None  # once it is seen off
        self.emptied = asyncio.Event()  # it holds no request any more, and gets none
        self.worker = WorkerProcess(
            plan.launch,
            worker_argv,
            adapters=plan.files,
            limits=limits,
            steps=steps,
            on_change=on_change,
            on_death=on_death,
        )
        lease.worker = self.worker
        self._memory = memory
        self._limits = limits
        self._on_failed_launch = on_failed_launch
        self._recorded = False
        self._coming: asyncio.Task[None] | None = None

    def adapt(self, plan: ModelPlan) -> None:
        """Follow a plan with the same launch: other adapters, another estimate."""
        self.plan = plan
        self.worker.adapt(plan.files)
        self.lease.reserved = self._memory.wanted(plan)

    async def start(self, *, proof: bool) -> None:
        """Load, and generate one token where a `proof` is wanted; return when it can serve.

        Raises BadModelError, WorkerCrashed, ProofError.
        """
        try:
            ready = await self.worker.start()
            self.load_s = self.lease.load_s = ready.load_s
            if proof:
                model = self.plan.model
                await prove(self.worker, probe=model.probe, limit_s=self._limits.proof_s)
        except (BadModelError, errors.WorkerCrashed, ProofError):
            if not (self.worker.exit and self.worker.exit.asked):
                self._on_failed_launch()
            raise
        self.lease.ready_at = time.monotonic()
        await self.measure()

    # ── beside another ──

    def bring_up(self, then: Callable[[], None]) -> None:
        """Start and prove it in the background; `is_up` tells when that is over."""
        self._coming = asyncio.create_task(self.start(proof=True))
        self._coming.add_done_callback(lambda _: then())

    @property
    def is_up(self) -> bool:
        """True when `bring_up` is over, well or not."""
        return self._coming is not None and self._coming.done()

    def failure(self) -> BaseException | None:
        """Return why it did not come up; None when it can serve."""
        assert self._coming is not None
        error = self._coming.exception()
        if error is None and not self.worker.alive:
            cause = self.worker.exit.cause if self.worker.exit else "it is gone"
            return errors.WorkerCrashed(cause)
        return error

    # ── the end ──

    async def measure(self) -> None:
        """Look how much memory it takes, and keep the most."""
        lease, pid = self.lease, self.worker.pid
        lease.peak_bytes = max(lease.peak_bytes, await self.worker.proportional_bytes())
        if self._memory.has_gpus and pid is not None:
            taken = await asyncio.to_thread(nvml.used_by_gpu, pid)
            by_place = {gpu(index): size for index, size in taken.items()}
            lease.gpu_bytes = most(lease.gpu_bytes, by_place)

    async def _held_on_gpus(self) -> int:
        pid = self.worker.pid
        if self.launch.lmdeploy is None or pid is None:
            return 0
        return await asyncio.to_thread(nvml.used_bytes, pid)

    async def end(self, why: str) -> None:
        """Stop the worker and free its memory; what it measured goes into the ledger."""
        if self._coming is not None:
            self._coming.cancel()
            with contextlib.suppress(BaseException):
                await asyncio.wait([self._coming])
        held = 0
        if self.worker.alive:
            await self.measure()
            held = await self._held_on_gpus()
        await self.worker.stop(why)
        if self.launch.lmdeploy is not None and self.worker.pid is not None:
            await gpu_release.confirm(self.launch.model, self.worker.pid, held)
        self._record()
        self._memory.release(self.lease)

    def see_off(self, why: str, then: Callable[[Tenure], None]) -> None:
        """Let its requests finish in the background, within the limit, and then `end` it."""
        self.lease.leaving = True
        self.leaving = asyncio.create_task(self._see_off(why))
        self.leaving.add_done_callback(lambda _: then(self))

    async def _see_off(self, why: str) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.emptied.wait(), self._limits.drain_s)
        await self.end(why)

    def _record(self) -> None:
        if self._recorded or self.worker.ready is None or not self.lease.peak_bytes:
            return
        if self.worker.is_condemned:  # else a balloon's size would keep its model out for ever
            return
        self._recorded = True
        self._memory.ledger.record(
            self.plan,
            self._memory.build,
            peak_bytes=self.lease.peak_bytes,
            requests=self.worker.answered,
            load_s=self.load_s,
            gpu_bytes=self.lease.gpu_bytes,
            buffers=self.worker.ready.buffers,
        )
