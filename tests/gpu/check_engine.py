"""LMDeploy on a real GPU, through the daemon's own view of a worker. Random weights throughout."""

import asyncio
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from edged.config import LmdeployOptions
from edged.errors import WorkerCrashed
from edged.hardware import Hardware
from edged.protocol import (
    EXIT_FAULT,
    Delta,
    Failed,
    Finish,
    Generate,
    JsonSchema,
    Messages,
    Text,
)
from edged.supervisor.worker_process import WorkerProcess
from tests.gpu.support import (
    FORMS,
    GREEDY,
    LIMITS,
    MIB,
    ask,
    launches,
    running,
    text_of,
    until,
    used_bytes,
)


@pytest.mark.parametrize("form", FORMS)
async def test_greedy_answers_are_the_same_twice(box: Hardware, folders: Path, form: str) -> None:
    async with running(launches(folders, box, form)[0]) as worker:
        request = Generate(Text("once upon a time"), sampling=GREEDY, max_tokens=64)
        first = await ask(worker, request)
        assert text_of(await ask(worker, request)) == text_of(first)
        last = first[-1]
        assert isinstance(last, Finish)
        assert (last.reason, last.usage.completion_tokens) == ("length", 64)


async def test_second_turn_finds_its_prefix(box: Hardware, folders: Path) -> None:
    async with running(launches(folders, box, "fp16")[0]) as worker:
        request = Generate(Text("a long beginning " * 40), sampling=GREEDY, max_tokens=4)
        await ask(worker, request)
        last = (await ask(worker, request))[-1]
        assert isinstance(last, Finish)
        assert last.usage.cached_tokens > 0


async def test_context_is_filled_and_not_overrun(box: Hardware, folders: Path) -> None:
    launch = launches(folders, box, "fp16")[0]
    async with running(launch) as worker:
        prompt = Text("x" * (launch.context - 1))
        last = (await ask(worker, Generate(prompt, sampling=GREEDY)))[-1]
        assert isinstance(last, Finish)
        assert last.usage.completion_tokens == 1


async def test_streams_together_and_five_hundred_aborts(box: Hardware, folders: Path) -> None:
    async with running(launches(folders, box, "fp16")[0]) as worker:

        async def rate() -> float:
            started = time.monotonic()
            requests = [
                ask(worker, Generate(Text(f"{n} is"), sampling=GREEDY, max_tokens=128))
                for n in range(64)
            ]
            await asyncio.gather(*requests)
            return 64 * 128 / (time.monotonic() - started)

        async def best_rate() -> float:
            return max([await rate() for _ in range(5)])

        await rate()  # warm
        before = await best_rate()
        random.seed(3)

        async def abort(n: int) -> None:
            stream = worker.generate(Generate(Text(f"{n}"), sampling=GREEDY, max_tokens=256))
            left = random.randrange(40)
            async for _ in stream:
                left -= 1
                if left < 0:
                    break
            await stream.aclose()

        numbers = iter(range(500))

        async def client() -> None:
            for n in numbers:
                await abort(n)

        await asyncio.gather(*(client() for _ in range(32)))
        after = await best_rate()
        print(f"64 streams: {before:.0f} tokens/s, {after:.0f} after 500 aborts")
        assert after > 0.8 * before
        assert worker.open == 0


async def test_guided_json(box: Hardware, folders: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 9}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    async with running(launches(folders, box, "fp16")[0]) as worker:
        for _ in range(5):
            prompt = Messages([{"role": "user", "content": "json"}])
            request = Generate(prompt, constraint=JsonSchema(schema), max_tokens=200)
            found = json.loads(text_of(await ask(worker, request)))
            assert set(found) == {"a", "b"}


async def test_likelihoods_sum_to_less_than_one(box: Hardware, folders: Path) -> None:
    async with running(launches(folders, box, "fp16")[0]) as worker:
        request = Generate(Text("once"), sampling=GREEDY, max_tokens=8, logprobs=5)
        events = await ask(worker, request)
        rows = [one for e in events if isinstance(e, Delta) for one in e.logprobs]
        assert len(rows) == 8
        assert all(one.logprob == max(each.logprob for each in one.top) for one in rows)


async def test_two_models_share_a_gpu(box: Hardware, folders: Path) -> None:
    one, other = launches(folders, box, "fp16", "awq")
    assert one.lmdeploy is not None
    assert other.lmdeploy is not None
    assert one.lmdeploy.devices == other.lmdeploy.devices
    async with running(one) as first, running(other) as second:
        request = Generate(Text("hi"), sampling=GREEDY, max_tokens=16)
        await asyncio.gather(ask(first, request), ask(second, request))


async def test_too_much_is_refused_at_load_with_figures(box: Hardware, folders: Path) -> None:
    launch = launches(folders, box, "fp16")[0]
    assert launch.lmdeploy is not None
    greedy = replace(launch.lmdeploy, cache_bytes=1 << 44)
    worker = WorkerProcess(replace(launch, lmdeploy=greedy), limits=LIMITS)
    with pytest.raises(WorkerCrashed, match="GiB are free"):
        await worker.start()
    await worker.stop("done")
    assert worker.exit is not None
    assert worker.exit.returncode == EXIT_FAULT


async def test_killed_worker_gives_its_memory_back(box: Hardware, folders: Path) -> None:
    options = LmdeployOptions(cache_max_entry_count=0.3)
    launch = launches(folders, box, "fp16", lmdeploy=options)[0]
    assert launch.lmdeploy is not None
    before = used_bytes()
    async with running(launch) as worker:
        taken = used_bytes() - before
        planned = launch.lmdeploy.weights_bytes + launch.lmdeploy.cache_bytes
        print(f"planned {planned >> 20} MiB, takes {taken >> 20} MiB")
        assert taken > launch.lmdeploy.cache_bytes // 2
        worker.kill("to see its memory come back")
        seconds = await until(lambda: used_bytes() - before < 200 * MIB, 30)
        print(f"memory is back after {seconds:.1f} s")


async def test_stopped_worker_is_found_and_ended(box: Hardware, folders: Path) -> None:
    async with running(launches(folders, box, "fp16")[0]) as worker:
        assert worker.pid is not None
        stream = worker.generate(Generate(Text("hi"), sampling=GREEDY, max_tokens=1500))
        await anext(stream)
        os.kill(worker.pid, signal.SIGSTOP)
        rest = [event async for event in stream]
        assert isinstance(rest[-1], Failed)
        assert worker.exit is not None
        assert "hung" in worker.exit.cause
