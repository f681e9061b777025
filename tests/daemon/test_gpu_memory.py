"""Several models on one GPU: fake workers, and a driver that says what each of them takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from edged.hardware import nvml
from edged.hardware.gpu import Gpu
from edged.plan import ModelPlan
from tests.daemon.support import Bench, is_alive, model, on_gpu, running, until
from tests.nvml import GIB, Nvml

CARD = Gpu(0, "RTX A", 24 * GIB, 24 * GIB)


class Driver(Nvml):
    """Tells what the models' workers take, in GiB, each on the first GPU."""

    def __init__(self, **takes: int) -> None:
        super().__init__(["RTX A"])
        self.takes = takes
        self.bench: Bench | None = None

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: Any) -> list[Any]:  # noqa: N802
        assert self.bench is not None
        pids = {each.name: each.pid for each in self.bench.supervisor.snapshot()}
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=size * GIB)
            for name, size in self.takes.items()
            if (pid := pids.get(name)) is not None and is_alive(pid)
        ]


@asynccontextmanager
async def box_with(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, *models: ModelPlan
) -> AsyncIterator[Bench]:
    monkeypatch.setattr(nvml, "load", lambda: driver)
    async with running(*models, gpus=(CARD,)) as bench:
        driver.bench = bench
        yield bench


async def test_models_that_take_more_of_a_gpu_than_was_thought_take_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the estimates both fit. What the first took is known once it has loaded."""
    models = (on_gpu("a"), on_gpu("b"), model("cpu"))
    async with box_with(Driver(a=16, b=12), monkeypatch, *models) as bench:
        elsewhere = await bench.ask("cpu", "pid")
        for _ in range(2):
            for name, other in (("a", "b"), ("b", "a")):
                assert await bench.ask(name, "count 1") == "0 "
                assert bench.model(other).state == "stopped"
        assert await bench.ask("cpu", "pid") == elsewhere
        assert [bench.model(name).restarts for name in "ab"] == [0, 0]


async def test_models_that_fit_on_one_gpu_stay_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = (on_gpu("a"), on_gpu("b"))
    async with box_with(Driver(a=10, b=9), monkeypatch, *models) as bench:
        for _ in range(2):
            await asyncio.gather(*(bench.ask(name, "count 1") for name in "ab"))
        assert [bench.model(name).state for name in "ab"] == ["ready", "ready"]


@pytest.mark.parametrize(("gib", "beside"), [(10, True), (14, False)])
async def test_changed_model_starts_beside_the_old_one_where_the_gpu_has_room(
    gib: int, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box_with(Driver(a=10), monkeypatch, on_gpu("a", load="startup")) as bench:
        await bench.until("a", "ready")
        old = asyncio.create_task(bench.ask("a", "count 30 0.02"))
        await asyncio.sleep(0)
        changed = on_gpu("a", gib=gib, load="startup", context=64)
        keeper = bench.supervisor._keepers["a"]
        states: set[str] = set()
        tell = keeper._on_state

        def watch() -> None:
            states.add(keeper.state)
            tell()

        monkeypatch.setattr(keeper, "_on_state", watch)
        await bench.apply(changed, gpus=(CARD,))
        assert len((await old).split()) == 30
        await until(lambda: bench.model("a").context == 64 and bench.model("a").state == "ready")
        assert ("starting" in states) == (not beside)
