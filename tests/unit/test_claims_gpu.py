"""A model that computes on a GPU hands over one worker after the other."""

from types import SimpleNamespace
from typing import Any, cast

from edged.config import Model
from edged.plan import MemoryEstimate, ModelPlan
from edged.protocol import Launch, LmdeployLaunch
from edged.supervisor.claims import Lease, Memory
from edged.supervisor.ledger import Ledger
from edged.supervisor.lifecycle import Limits


def plan(*devices: int, dtype: Any = "float16") -> ModelPlan:
    settings = LmdeployLaunch("/python", devices, 1, 1, dtype=dtype) if devices else None
    engine: Any = "lmdeploy" if devices else "llamacpp"
    launch = Launch("a", engine, "/a", "1", 64, 1, 64, lmdeploy=settings)
    return ModelPlan(Model(name="a"), engine, launch, MemoryEstimate(1, 1, 1))


def test_two_workers_of_a_model_are_never_on_one_gpu() -> None:
    memory = Memory(Ledger(), Limits())
    memory.budget_bytes = 1 << 40
    holder: Any = SimpleNamespace(
        name="a", is_busy=False, is_leaving=False, pinned=False, last_used=0.0, waiting_since=None
    )
    worker = SimpleNamespace(launch=plan(0).launch, memory_bytes=lambda: 1)
    memory.leases.add(Lease(holder, 1, worker=cast("Any", worker)))
    assert memory.beside(holder, plan(0, dtype="bfloat16")) is None
    assert memory.beside(holder, plan(0, 1)) is None
    assert memory.beside(holder, plan(1)) is not None
    assert memory.beside(holder, plan()) is not None
