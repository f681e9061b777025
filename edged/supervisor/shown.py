"""How a model is shown: `/status`, `edged status` and the metrics read nothing else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edged.plan import AdapterPlan
from edged.plan.places import MAIN
from edged.status import AdapterStatus, ModelStatus, Settings

if TYPE_CHECKING:
    from edged.supervisor.wishes import Wishes


def status_of(keeper: Wishes) -> ModelStatus:
    """Return the model as it stands now."""
    wanted, running = keeper.plan, keeper.succession.target
    tenure, line = keeper.tenure, keeper.entrance.line
    worker = tenure.worker if tenure else None
    successor = keeper.handover.successor
    if tenure is not None:
        running = tenure.plan
    taken_bytes = worker.memory_bytes() if worker else None
    estimate = running.memory.total_bytes if running.memory else None
    ready = worker.ready if worker else None
    reserved = tenure.lease.sizes if tenure else {}
    return ModelStatus(
        name=keeper.name,
        state=keeper.state,
        engine=running.engine,
        aliases=wanted.model.aliases,
        reasons=running.reasons,
        error=keeper.error,
        since_s=round(time.monotonic() - keeper.since, 3),
        pid=worker.pid if worker else None,
        context=running.context,
        parallel=running.model.parallel,
        memory_bytes=taken_bytes or estimate,
        reserved_bytes=reserved[MAIN] if tenure else None,
        reserved_gpu_bytes={place: size for place, size in reserved.items() if place != MAIN},
        open=line.admitted,
        queued=line.waiting,
        restarts=keeper.restarts,
        progress=worker.loaded_fraction if worker and keeper.state == "starting" else None,
        load_s=ready.load_s if ready else None,
        build=ready.build if ready else None,
        stats=worker.stats if worker else None,
        stderr_tail=worker.stderr_tail if worker else keeper.last_words,
        kind=running.kind,
        settings=Settings.of(worker.launch if worker else running.launch),
        adapters=_adapters(keeper),
        rolled_back=keeper.succession.rolled_back,
        successor_pid=successor.worker.pid if successor else None,
    )


def _adapters(keeper: Wishes) -> tuple[AdapterStatus, ...]:
    worker = keeper.tenure.worker if keeper.tenure else None
    stats = worker.stats if worker else None
    told = {each.name: each for each in stats.adapters} if stats else {}

    def status(adapter: AdapterPlan) -> AdapterStatus:
        if adapter.refusal is not None:
            return AdapterStatus(adapter.name, "failed", adapter.scale, adapter.refusal)
        found = told.get(adapter.name)
        if found is None:
            return AdapterStatus(adapter.name, "loading" if worker else "stopped", adapter.scale)
        return AdapterStatus(adapter.name, found.state, adapter.scale, found.error or None)

    return tuple(status(adapter) for adapter in keeper.plan.adapters)
