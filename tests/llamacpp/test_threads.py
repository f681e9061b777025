"""The thread counts of a real engine on a box that a real program keeps busy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.protocol import Sampling, Text
from edged.worker.llamacpp.balance import BoxLoad
from edged.worker.llamacpp.engine import LlamaCppEngine
from tests.llamacpp.support import ask, launch, needs_llama_cpp, running
from tests.models import UnavailableError, bench_model

NO_END = Sampling(temperature=0.0, ignore_eos=True)
LIMIT_S = 60.0


@contextlib.contextmanager
def busy_programs(n: int) -> Iterator[None]:
    """Keep `n` cores busy, as programs of somebody else: each in a session of its own."""
    command = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(command, start_new_session=True) for _ in range(n)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def load_after(load: BoxLoad, seconds: float = 1.0) -> float:
    load.begin(time.monotonic())
    time.sleep(seconds)  # what is measured is an average over this time
    found = load.look(time.monotonic())
    assert found is not None
    return found


# ── what others take ──


def test_load_of_others_is_what_is_neither_idle_nor_ours(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    ticks = os.sysconf("SC_CLK_TCK")

    def write(idle0_s: float, waiting1_s: float) -> None:
        stat.write_text(
            "cpu  1 1 1 1 1 0 0 0 0 0\n"
            f"cpu0 7 0 0 {int(idle0_s * ticks)} 0 0 0 0 0 0\n"
            f"cpu1 7 0 0 0 {int(waiting1_s * ticks)} 0 0 0 0 0\n"
            f"cpu2 7 0 0 {10**9} 0 0 0 0 0 0\nintr 5 0 0\n"
        )

    write(100, 200)
    load = BoxLoad(stat, {0, 1})
    assert load.n_cpus == 2
    assert load.look(9.0) is None  # nothing to compare with
    load.begin(10.0)
    assert load.look(10.1) is None  # too soon
    write(100.25, 200.5)
    load.begin(10.5)  # between two steps
    assert load.look(11.0) == pytest.approx(1.25, abs=0.1)
    write(101.25, 201.5)
    assert load.look(12.0) == pytest.approx(0.0, abs=0.1)
    write(130.0, 230.0)
    load.begin(60.0)  # the model had nothing to do
    assert load.look(63.0) == pytest.approx(2.0, abs=0.1)  # a long step
    load.close()
    assert load.look(64.0) is None


def test_without_proc_stat_nothing_is_known(tmp_path: Path) -> None:
    load = BoxLoad(tmp_path / "absent", {0})
    load.begin(1.0)
    assert load.look(2.0) is None


def test_a_busy_program_is_seen() -> None:
    load = BoxLoad()
    with busy_programs(load.n_cpus):
        assert load_after(load) > 0.5 * load.n_cpus
    load.close()


# ── the engine ──


async def settles(engine: LlamaCppEngine, threads: int) -> bool:
    """Ask on and on; tell if the engine comes to this number of threads within `LIMIT_S`."""
    ends_s = time.monotonic() + LIMIT_S
    while engine.stats().threads != threads and time.monotonic() < ends_s:
        await ask(engine, Text("Once upon a time"), max_tokens=16, sampling=NO_END)
    return engine.stats().threads == threads


@needs_llama_cpp
@pytest.mark.timeout(300)
async def test_a_core_is_left_to_a_busy_program_and_taken_back() -> None:
    n_cpus = len(os.sched_getaffinity(0))
    if n_cpus < 2:
        pytest.skip("one CPU only")
    try:
        model = bench_model()
    except UnavailableError as error:
        pytest.skip(str(error))
    async with running(launch(model, context=1024, parallel=1, threads=2)) as engine:
        with busy_programs(n_cpus - 1):
            assert await settles(engine, 1)
            assert engine.stats().threads_reason.startswith("2 → 1 threads")
        if not await settles(engine, 2):
            taken = engine._thread.balance.threads.taken
            assert taken > 0.2
            pytest.skip(f"the box is busy with other things: {taken:.1f} CPUs")
        assert "threads," not in engine.stats().threads_reason
