"""Memory of GPUs among the leases: measured, estimated, beside one another."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from edged.config import Model
from edged.errors import InsufficientMemory
from edged.hardware.gpu import Gpu
from edged.plan import MemoryEstimate, ModelPlan
from edged.plan.places import gpu
from edged.plan.vram import usable_bytes
from edged.protocol import Launch, LmdeployLaunch
from edged.supervisor.claims import Lease, Memory
from edged.supervisor.ledger import Ledger
from edged.supervisor.lifecycle import Limits
from tests.daemon.support import box

GIB = 1 << 30
CARD = Gpu(0, "RTX", 24 * GIB, 24 * GIB)


def plan(name: str, *devices: int, gib: int = 10) -> ModelPlan:
    settings = LmdeployLaunch("/python", devices, gib * GIB // 2, gib * GIB // 2)
    launch = Launch(name, "lmdeploy", f"/{name}", "1", 64, 1, 64, lmdeploy=settings)
    return ModelPlan(Model(name=name), "lmdeploy", launch, MemoryEstimate(1, 1, 1))


class Held(SimpleNamespace):
    """A keeper, as far as memory is concerned: idle, with a request that waits."""

    def __init__(self, name: str) -> None:
        super().__init__(
            name=name, is_busy=False, is_leaving=False, pinned=False, last_used=0.0,
            waiting_since=0.0, evicted=False,
        )  # fmt: skip

    def __hash__(self) -> int:
        return id(self)

    def evict(self) -> None:
        self.evicted = True


def holder(name: str) -> Any:
    return Held(name)


@pytest.fixture
def memory() -> Memory:
    found = Memory(Ledger(), Limits())
    found.follow(box(gpus=(CARD, replace(CARD, index=1), replace(CARD, index=2, via="vulkan"))))
    return found


def grant(memory: Memory, who: Any, wanted: ModelPlan) -> Lease:
    lease = memory.claim(who, wanted)
    assert lease is not None
    lease.worker = cast("Any", SimpleNamespace(launch=wanted.launch, memory_bytes=lambda: 1))
    return lease


def test_estimates_serve_until_there_is_a_measurement(memory: Memory) -> None:
    a, b = holder("a"), holder("b")
    first = grant(memory, a, plan("a", 0))
    grant(memory, b, plan("b", 0))
    first.gpu_bytes = {gpu(0): 14 * GIB}  # NVML says
    assert memory.claim(holder("c"), plan("c", 1)) is not None
    assert memory.claim(holder("d"), plan("d", 0, gib=2)) is None
    assert a.evicted != b.evicted  # one of them is enough


def test_measured_memory_of_a_gpu_decides_who_fits(memory: Memory) -> None:
    for each, size in (("a", 14), ("b", 12)):
        memory.ledger.record(
            plan(each, 0), memory.build, peak_bytes=1, requests=1, gpu_bytes={gpu(0): size * GIB}
        )
    a = holder("a")
    grant(memory, a, plan("a", 0))
    assert memory.claim(holder("b"), plan("b", 0)) is None
    assert a.evicted


def test_what_a_gpu_once_bore_is_never_refused(memory: Memory) -> None:
    memory.ledger.record(
        plan("a", 0), memory.build, peak_bytes=1, requests=99, gpu_bytes={gpu(0): CARD.memory_bytes}
    )
    lease = grant(memory, holder("a"), plan("a", 0))
    assert lease.sizes[gpu(0)] == usable_bytes(CARD)


def test_gpu_that_is_gone_has_no_memory(memory: Memory) -> None:
    with pytest.raises(InsufficientMemory, match="of GPU 2, which is not there"):
        memory.claim(holder("a"), plan("a", 2))


def test_successor_is_beside_on_one_gpu_only_where_both_fit(memory: Memory) -> None:
    a = holder("a")
    grant(memory, a, plan("a", 0))
    assert memory.beside(a, plan("a", 0, gib=14)) is None
    assert memory.beside(a, plan("a", 0, 1, gib=14)) is None
    assert memory.beside(a, plan("a", 1, gib=14)) is not None
    assert memory.beside(a, plan("a", 0, gib=12)) is not None
