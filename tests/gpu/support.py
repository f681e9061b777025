"""Workers on a GPU, and what is asked of them."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from edged.config import Config, Model, Source
from edged.hardware import Hardware
from edged.plan import make
from edged.protocol import Delta, Event, Failed, Generate, Launch, Sampling
from edged.supervisor.lifecycle import Limits
from edged.supervisor.worker_process import WorkerProcess

LIMITS = Limits(silence_s=5.0, load_silence_s=200.0)
GREEDY = Sampling(temperature=0.0, ignore_eos=True)
FORMS = ("fp16", "awq")
MIB = 1 << 20


def launches(folders: Path, box: Hardware, *names: str, **fields: object) -> list[Launch]:
    """Return the launches that the plan gives these models together."""
    given = {"context": 2048, "parallel": 64, **fields}
    models = {
        f"{n}-{name}": Model(name=f"{n}-{name}", safetensors=Source("file", name), **given)  # type: ignore[arg-type]
        for n, name in enumerate(names)
    }
    made = make(Config(path=str(folders / "models.toml"), models=models), box)
    found = []
    for each in made.models.values():
        assert each.launch is not None, each.refusal
        found.append(each.launch)
    return found


@asynccontextmanager
async def running(launch: Launch) -> AsyncIterator[WorkerProcess]:
    worker = WorkerProcess(launch, limits=LIMITS)
    try:
        ready = await worker.start()
        print(f"{ready.build}: loaded in {ready.load_s} s")
        yield worker
    finally:
        await worker.stop("done")


async def ask(worker: WorkerProcess, request: Generate) -> list[Event]:
    events = [event async for event in worker.generate(request)]
    assert not isinstance(events[-1], Failed), events[-1]
    return events


def text_of(events: list[Event]) -> str:
    return "".join(event.content for event in events if isinstance(event, Delta))


def used_bytes() -> int:
    said = subprocess.run(
        ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(said.stdout.split()[0]) * MIB


async def until(condition: Callable[[], bool], limit_s: float) -> float:
    """Wait for something and return how long it took; fails after `limit_s`."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit_s, "it never came to be"
        await asyncio.sleep(0.1)
    return time.monotonic() - started
