"""The memory estimate of a whole worker against what one takes that is fully used."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from edged import plan
from edged.config import Config, Model, Source
from edged.protocol import (
    Embed,
    Embedded,
    Event,
    Finish,
    Generate,
    Kind,
    Ranked,
    Request,
    Rerank,
    Sampling,
    Started,
    Text,
)
from edged.supervisor.lifecycle import Limits
from edged.supervisor.worker_process import WORKER_ARGV, WorkerProcess
from tests.llamacpp.support import needs_llama_cpp
from tests.models import UnavailableError, bench_model, tiny
from tests.models.tiny import Trait
from tests.pull.support import box

pytestmark = needs_llama_cpp

MIB = 1 << 20
CONTEXT, PARALLEL = 1024, 4


def path_of(name: str) -> Path:
    try:
        return bench_model() if name == "bench" else tiny(name)  # type: ignore[arg-type]
    except UnavailableError as error:
        pytest.skip(str(error))


def measured(pid: int) -> tuple[float, float]:
    """Return PSS and RSS in MiB: they differ by what other processes share, libraries mostly."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = dict(re.findall(r"^(Pss|Rss):\s+(\d+) kB", text, re.MULTILINE))
    return int(found["Pss"]) / 1024, int(found["Rss"]) / 1024


async def fill(worker: WorkerProcess, context: int, parallel: int) -> None:
    """Let every cell of the pool, every sequence and the largest batch be used once."""

    async def ask(n: int) -> Event | None:
        words = " ".join(str((n * 7919 + i * 31) % 1000) for i in range(context // 5))
        request = Generate(
            Text(words),
            sampling=Sampling(temperature=1.0, ignore_eos=True, seed=n),
            max_tokens=context // 16,
        )
        last = None
        async for event in worker.generate(request):
            last = event
        return last

    for turn in range(2):
        for last in await asyncio.gather(*(ask(turn * 100 + n) for n in range(parallel))):
            assert isinstance(last, Finish), last


TRAITS: tuple[Trait, ...] = (
    "plain",
    "swa",
    "sinks",
    "mla",
    "recurrent",
    "rwkv",
    "hybrid-swa",
    "hybrid-ssm",
    "hybrid-delta",
)


@pytest.mark.skipif(not os.access("/proc/self/smaps_rollup", os.R_OK), reason="no smaps_rollup")
@pytest.mark.parametrize("name", [*TRAITS, "bench"])
async def test_estimate_is_what_a_used_worker_takes(name: str) -> None:
    context, parallel = (256, 2) if name == "bench" else (CONTEXT, PARALLEL)
    model = Model("m", Source("file", str(path_of(name))), context=context, parallel=parallel)
    made = plan.make(Config(path="/models.toml", models={"m": model}), box()).models["m"]
    assert made.launch, made.refusal
    assert made.memory
    worker = WorkerProcess(made.launch, WORKER_ARGV, limits=Limits(), on_change=lambda: None)
    try:
        ready = await worker.start()
        await fill(worker, context, parallel)
        assert worker.pid
        pss, rss = measured(worker.pid)
    finally:
        await worker.stop("the test is over")
    kept = sum(size for name, size in ready.buffers.items() if name.endswith((" KV", " RS")))
    assert made.memory.kv_bytes == pytest.approx(kept, rel=0.02, abs=MIB / 50)
    said = made.memory.total_bytes / MIB
    assert 0.9 * pss < said < 1.1 * rss, f"{said:.1f} MiB, PSS {pss:.1f}, RSS {rss:.1f}"


async def read(worker: WorkerProcess, kind: Kind, context: int) -> None:
    """Let the largest batch and the longest input be computed once."""
    long = " ".join(str((i * 7919) % 1000) for i in range(context // 5))
    texts = [long, *(f"{n} {long[: 40 * n]}" for n in range(1, 16))]
    for _ in range(2):
        if kind == "rerank":
            request: Request = Rerank("12 34 56", [text[: len(text) // 2] for text in texts])
        else:
            request = Embed([Text(text) for text in texts])
        async for event in worker.generate(request):
            assert isinstance(event, Started | Embedded | Ranked), event


@pytest.mark.skipif(not os.access("/proc/self/smaps_rollup", os.R_OK), reason="no smaps_rollup")
@pytest.mark.parametrize("name", ["embedding", "embedding-last", "rerank", "rerank-last"])
async def test_estimate_of_vectors_is_what_a_used_worker_takes(name: str) -> None:
    model = Model("m", Source("file", str(path_of(name))), context=512)
    made = plan.make(Config(path="/models.toml", models={"m": model}), box()).models["m"]
    assert made.launch, made.refusal
    assert made.memory
    worker = WorkerProcess(made.launch, WORKER_ARGV, limits=Limits(), on_change=lambda: None)
    try:
        await worker.start()
        await read(worker, made.launch.kind, 512)
        assert worker.pid
        pss, rss = measured(worker.pid)
    finally:
        await worker.stop("the test is over")
    said = made.memory.total_bytes / MIB
    assert 0.9 * pss < said < 1.1 * rss, f"{said:.1f} MiB, PSS {pss:.1f}, RSS {rss:.1f}"
