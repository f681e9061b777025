"""A worker on a box that does other work: slow, and not taken for hung."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from msgspec.structs import replace

from edged.protocol import Event, Finish, Generate, Launch, LlamaCppLaunch, Sampling, Text
from edged.supervisor.lifecycle import Limits
from edged.supervisor.worker_process import WORKER_ARGV, WorkerProcess
from tests.llamacpp.support import needs_llama_cpp
from tests.models.tiny import tiny

pytestmark = needs_llama_cpp

ONE_CPU = ("taskset", "--cpu-list", str(min(os.sched_getaffinity(0))))
HOG = (*ONE_CPU, sys.executable, "-c", "while True: pass")
# Two looks in a row without a sign of work are enough; one may lie before the requests.
LIMITS = replace(Limits(), stuck_s=1.5)


def launch() -> Launch:
    return Launch(
        model="m",
        engine="llamacpp",
        path=str(tiny("plain")),
        file_id="1",
        context=2048,
        parallel=2,
        pool=4096,
        llamacpp=LlamaCppLaunch(threads=2, threads_batch=2, batch=2048),
    )


@contextmanager
def hogs(n: int) -> Iterator[None]:
    """Let `n` other programs want the worker's CPU, all the time."""
    children = [subprocess.Popen(HOG) for _ in range(n)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


@asynccontextmanager
async def running() -> AsyncIterator[WorkerProcess]:
    worker = WorkerProcess(launch(), (*ONE_CPU, *WORKER_ARGV), limits=LIMITS)
    try:
        await worker.start()
        yield worker
    finally:
        await worker.stop("the test is over")


async def ask(worker: WorkerProcess, text: str, n: int) -> Event:
    request = Generate(Text(text), Sampling(ignore_eos=True, temperature=0.0), max_tokens=n)
    async with contextlib.aclosing(worker.generate(request)) as events:
        return [event async for event in events][-1]


async def test_worker_that_others_keep_from_its_cpus_is_not_taken_for_hung() -> None:
    async with running() as worker:
        assert isinstance(await ask(worker, "so that it has learned", 60), Finish)
        with hogs(4):
            asking = [ask(worker, f"{n} " * 300, 20) for n in range(2)]
            ends = await asyncio.gather(*asking)
        assert all(isinstance(end, Finish) for end in ends), ends
        assert worker.alive
