"""A box for the tests: plans by hand, the fake worker, and waits with generous limits."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edged.config import Config, HardwareOverrides, Model
from edged.hardware import Cpu, Engines, Hardware, Memory
from edged.hardware.gpu import Gpu
from edged.plan import MemoryEstimate, ModelPlan, Plan, diff
from edged.protocol import Delta, Event, Failed, Finish, Generate, Launch, LmdeployLaunch, Text
from edged.status import ModelStatus
from edged.supervisor import Supervisor
from edged.supervisor.ledger import Ledger
from edged.supervisor.lifecycle import Limits

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
PATIENCE_S = 60.0  # other programs may hold the cores; no test waits this long when all is well

# Short enough that a test sees every wait end, long enough for a slow machine.
LIMITS = Limits(
    start_wait_s=30,
    queue_wait_s=60,
    drain_s=30,
    stop_s=5,
    first_backoff_s=0.05,
    most_backoff_s=0.4,
    memory_retry_s=0.2,
    proof_s=5,
)


def model(
    name: str, how: str = "", *, mb: int = 1, refusal: str | None = None, **keys: Any
) -> ModelPlan:
    """Return the plan of a model; `how` is what stands behind `--` in its file's name."""
    settings = Model(name=name, **({"parallel": 2, "queue": 8} | keys))
    launch = Launch(
        model=name,
        engine="llamacpp",
        path=f"/nowhere/{name}--{how}.gguf" if not how.startswith("/") else how,
        file_id="1",
        context=settings.context,
        parallel=settings.parallel,
        pool=settings.context * settings.parallel,
    )
    return ModelPlan(
        model=settings,
        engine=None if refusal else "llamacpp",
        launch=None if refusal else launch,
        memory=MemoryEstimate(mb << 20, 0, 0, process_bytes=0),
        refusal=refusal,
    )


def on_gpu(name: str, *, gib: int = 10, **keys: Any) -> ModelPlan:
    """Return a model that is estimated to take so much of the GPU."""
    plan = model(name, **keys)
    assert plan.launch is not None
    settings = LmdeployLaunch("/python", (0,), (gib << 30) - 1, 1)
    launch = replace(plan.launch, engine="lmdeploy", lmdeploy=settings)
    return replace(plan, engine="lmdeploy", launch=launch)


def box(*models: ModelPlan, budget_mb: int = 1000, gpus: tuple[Gpu, ...] = ()) -> Plan:
    """Return a plan of these models on a box with this much memory for them."""
    hardware = Hardware(
        cpu=Cpu(
            model="test", architecture="x86_64", physical_cores=1, usable_cores=1, usable_cpus=1
        ),
        memory=Memory(
            total_bytes=budget_mb << 20,
            limit_bytes=budget_mb << 20,
            available_bytes=budget_mb << 20,
        ),
        gpus=gpus,
        engines=Engines(llamacpp="test"),
    )
    config = Config(
        hardware=HardwareOverrides(reserve_memory_bytes=0),
        models={plan.model.name: plan.model for plan in models},
    )
    plans = {plan.model.name: plan for plan in models}
    return Plan(
        config=config, hardware=hardware, models=plans, names={name: name for name in plans}
    )


class Bench:
    """A supervisor with its plan."""

    def __init__(self, limits: Limits = LIMITS, ledger: Ledger | None = None) -> None:
        self.supervisor = Supervisor(worker_argv=FAKE_WORKER, limits=limits, ledger=ledger)
        self.plan: Plan | None = None

    async def apply(self, *models: ModelPlan, **of_box: Any) -> None:
        new = box(*models, **of_box)
        change = diff(self.plan, new)
        self.plan = new
        await self.supervisor.apply(new, change)

    def model(self, name: str) -> ModelStatus:
        return next(status for status in self.supervisor.snapshot() if status.name == name)

    async def until(self, name: str, *states: str) -> ModelStatus:
        await until(lambda: self.model(name).state in states, lambda: repr(self.model(name)))
        return self.model(name)

    async def ask(self, name: str, prompt: str) -> str:
        """Return the whole answer; raises AssertionError with the failure when it failed."""
        events = await self.events(name, prompt)
        assert isinstance(events[-1], Finish), events[-1]
        return text_of(events)

    async def events(self, name: str, prompt: str) -> list[Event]:
        return [event async for event in self.supervisor.generate(name, Generate(Text(prompt)))]

    async def first_event(self, name: str, prompt: str) -> Event:
        """Return the first piece of an answer and leave, like a client that hangs up."""
        async with aclosing(self.supervisor.generate(name, Generate(Text(prompt)))) as events:
            async for event in events:
                if isinstance(event, Delta | Failed):
                    return event
        raise AssertionError("ended without an event")


@asynccontextmanager
async def running(*models: ModelPlan, limits: Limits = LIMITS, **keys: Any) -> AsyncIterator[Bench]:
    bench = Bench(limits)
    await bench.apply(*models, **keys)
    try:
        yield bench
    finally:
        bench.supervisor.kill()
        await asyncio.wait_for(bench.supervisor.shutdown(0), PATIENCE_S)


def text_of(events: list[Event]) -> str:
    return "".join(event.content for event in events if isinstance(event, Delta))


async def until(
    condition: Callable[[], object],
    explain: Callable[[], str] = lambda: "",
    limit_s: float = PATIENCE_S,
) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"did not happen in {limit_s} s: {explain()}"
        await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
