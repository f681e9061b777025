"""Whether the memory of an ended worker is back, as NVML's process list says."""

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from edged.config import Model
from edged.hardware import nvml
from edged.plan import MemoryEstimate, ModelPlan
from edged.protocol import Launch, LmdeployLaunch
from edged.supervisor import gpu_release
from edged.supervisor.claims import Lease, Memory
from edged.supervisor.ledger import Ledger
from edged.supervisor.lifecycle import Limits, Steps
from edged.supervisor.tenure import Tenure
from tests.nvml import MIB, Device, Nvml, NvmlError


def test_driver_that_does_not_answer_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Nvml([Device("A", processes=((7, MIB),))])

    def lost() -> None:
        raise NvmlError("GPU is lost")

    monkeypatch.setattr(driver, "nvmlDeviceGetCount", lost)
    monkeypatch.setattr(nvml, "load", lambda: driver)
    assert nvml.used_bytes(7) == 0


async def test_memory_comes_back_after_a_while() -> None:
    left = iter([3, 2, 1])
    assert await gpu_release.confirm("m", 7, 3, held=lambda _: next(left, 0))


async def test_memory_that_stays_is_told() -> None:
    assert not await gpu_release.confirm("m", 7, 3, held=lambda _: MIB, limit_s=0.0)


async def test_end_of_a_worker_waits_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else gets the room before it is there."""
    settings = LmdeployLaunch(sys.executable, (0,), 1, 1)
    launch = Launch("a", "lmdeploy", "/a", "1", 64, 1, 64, lmdeploy=settings)
    plan = ModelPlan(Model(name="a"), "lmdeploy", launch, MemoryEstimate(1, 1, 1))
    memory = Memory(Ledger(), Limits())
    holder: Any = SimpleNamespace(name="a")
    lease = Lease(holder, {})
    memory.leases.add(lease)
    asked: list[tuple[int, bool]] = []
    left = iter([5, 4, 3])

    def held(pid: int) -> int:
        asked.append((pid, lease in memory.leases))
        return next(left, 0)

    monkeypatch.setattr(nvml, "used_bytes", held)
    script = "import sys, socket; socket.socket(fileno=int(sys.argv[-1])).recv(1 << 20); input()"
    tenure = Tenure(
        plan, lease, memory, worker_argv=(sys.executable, "-c", script), limits=Limits(),
        steps=Steps(), on_change=lambda: None, on_death=lambda _: None,
        on_failed_launch=lambda: None,
    )  # fmt: skip
    starting = asyncio.ensure_future(tenure.worker.start())
    await asyncio.sleep(0)  # it is spawned in its first step
    pid = tenure.worker.pid
    assert pid is not None
    await tenure.end("done")
    starting.cancel()
    await asyncio.wait({starting})
    assert lease not in memory.leases
    assert {each for each, _ in asked} == {pid}
    assert len(asked) > 1
    assert all(still_held for _, still_held in asked)
