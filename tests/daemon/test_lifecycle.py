"""Change, shortage, hang and poison, with real processes: what users notice of it is nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
from pathlib import Path

import pytest
from msgspec.structs import replace

from edged import errors
from edged.protocol import Failed
from edged.supervisor.ledger import Ledger
from edged.supervisor.lifecycle import TICK_S
from tests.daemon.support import LIMITS, PATIENCE_S, Bench, is_alive, model, running, until

MB = 1 << 20


# ── rolling replace ──


async def test_changed_model_is_replaced_beside_without_a_wait_or_a_lost_request() -> None:
    async with running(model("a", parallel=8)) as bench:
        stream = asyncio.create_task(bench.ask("a", "count 60 0.05"))
        await until(lambda: bench.model("a").open == 1)
        old = bench.model("a").pid or 0
        await bench.apply(model("a", "slow-1", parallel=8))
        await until(lambda: bench.model("a").successor_pid)
        assert int(await bench.ask("a", "pid")) == old  # while the new one loads
        assert bench.model("a").state == "ready"
        await until(lambda: bench.model("a").pid != old)
        assert int(await bench.ask("a", "pid")) not in (old, 0)
        assert is_alive(old)  # it finishes what it has
        assert len((await stream).split()) == 60
        await until(lambda: not is_alive(old))
        assert bench.model("a").restarts == 0


async def test_requests_without_a_break_meet_no_failure_over_ten_changes() -> None:
    async with running(model("a", "slow-0"), model("b")) as bench:
        stop = asyncio.Event()
        n_answered = 0

        async def client(name: str) -> None:
            nonlocal n_answered
            while not stop.is_set():
                assert await bench.ask(name, "count 3 0.01") == "0 1 2 "
                n_answered += 1

        clients = [asyncio.create_task(client(name)) for name in ("a", "a", "a", "b")]
        await bench.until("a", "ready")
        for n in range(1, 11):
            before = bench.model("a").pid
            await bench.apply(model("a", f"slow-0.0{n}"), model("b"))
            await until(lambda before=before: bench.model("a").pid not in (before, None))  # type: ignore[misc]
        stop.set()
        await asyncio.gather(*clients)
        assert n_answered > 20
        assert bench.model("b").restarts == 0


async def test_worker_that_cannot_generate_takes_over_from_nobody() -> None:
    async with running(model("a")) as bench:
        pid = await bench.ask("a", "pid")
        await bench.apply(model("a", "unfit"))
        await until(lambda: bench.model("a").rolled_back)
        assert "no logits came of it" in str(bench.model("a").rolled_back)
        assert await bench.ask("a", "pid") == pid
        assert bench.model("a").state == "ready"
        await bench.apply(model("a"))  # taken back
        assert bench.model("a").rolled_back is None


async def test_probe_of_the_model_must_be_answered() -> None:
    async with running(model("a")) as bench:
        pid = await bench.ask("a", "pid")
        await bench.apply(model("a", "changed", probe="stall"))
        await until(lambda: bench.model("a").rolled_back)
        assert "answer to its probe" in str(bench.model("a").rolled_back)
        assert await bench.ask("a", "pid") == pid
        await bench.apply(model("a", "changed", probe="echo yes"))
        await until(lambda: bench.model("a").pid != int(pid))


async def test_change_that_crashes_twice_in_the_time_of_proof_is_taken_back() -> None:
    async with running(model("a")) as bench:
        pid = await bench.ask("a", "pid")
        await bench.apply(model("a", "cursed"))
        await until(lambda: str(bench.model("a").pid) != pid)
        for n in range(4):  # its proof was its first request, whatever comes then kills it
            if bench.model("a").rolled_back is None:
                await bench.events("a", f"echo {n}")
        await until(lambda: bench.model("a").rolled_back)
        assert "died 2 times" in str(bench.model("a").rolled_back)
        assert await bench.ask("a", "count 1") == "0 "


async def test_refused_plan_keeps_the_worker() -> None:
    async with running(model("a")) as bench:
        pid = await bench.ask("a", "pid")
        await bench.apply(model("a", refusal="its file is truncated"))
        assert bench.model("a").rolled_back == "its file is truncated"
        assert await bench.ask("a", "pid") == pid
        await bench.apply(model("a"))
        assert bench.model("a").rolled_back is None
        assert await bench.ask("a", "pid") == pid


async def test_model_removed_while_it_is_replaced_leaves_nothing() -> None:
    async with running(model("a"), model("b")) as bench:
        await bench.ask("a", "pid")
        await bench.apply(model("a", "slow-30"), model("b"))
        await until(lambda: bench.model("a").successor_pid)
        pids = [bench.model("a").pid or 0, bench.model("a").successor_pid or 0]
        await bench.apply(model("b"))
        await until(lambda: not any(is_alive(pid) for pid in pids))
        await until(lambda: not bench.supervisor._memory.leases)


async def test_recycled_worker_is_replaced_in_an_idle_moment() -> None:
    async with running(model("a")) as bench:
        pid = await bench.ask("a", "pid")
        stream = asyncio.create_task(bench.ask("a", "count 10 0.05"))
        await until(lambda: bench.model("a").open == 1)
        bench.supervisor._keepers["a"].recycle("it grew")
        assert len((await stream).split()) == 10
        await until(lambda: bench.model("a").pid not in (int(pid), None))
        assert await bench.ask("a", "count 1") == "0 "
        assert bench.model("a").restarts == 0


# ── memory ──


async def test_model_waits_until_a_busy_one_is_idle() -> None:
    models = model("a", mb=60), model("b", mb=60)
    async with running(*models, budget_mb=100) as bench:
        stream = asyncio.create_task(bench.ask("a", "count 30 0.05"))
        await until(lambda: bench.model("a").open == 1)
        wanting = asyncio.create_task(bench.ask("b", "count 1"))
        await until(lambda: bench.model("b").error)
        assert "a holds 60 MiB (busy)" in str(bench.model("b").error)
        assert len((await stream).split()) == 30
        assert await wanting == "0 "


async def test_model_that_is_busy_without_end_gives_way() -> None:
    models = model("a", mb=60, parallel=1), model("b", mb=60)
    async with running(*models, limits=replace(LIMITS, patience_s=0.5), budget_mb=100) as bench:
        stop = asyncio.Event()

        async def client() -> int:
            n = 0
            while not stop.is_set():
                assert await bench.ask("a", "count 2 0.05") == "0 1 "
                n += 1
            return n

        clients = [asyncio.create_task(client()) for _ in range(4)]
        await bench.until("a", "ready")
        assert await bench.ask("b", "count 1") == "0 "
        stop.set()
        assert all(await asyncio.gather(*clients))


async def test_wait_for_memory_ends_with_who_has_it() -> None:
    models = model("a", mb=60), model("b", mb=60)
    limits = replace(LIMITS, memory_wait_s=0.5)
    async with running(*models, limits=limits, budget_mb=100) as bench:
        stream = asyncio.create_task(bench.first_event("a", "stall"))
        await until(lambda: bench.model("a").open == 1)
        with pytest.raises(errors.InsufficientMemory, match=r"after waiting \d+ s: a holds") as e:
            await bench.ask("b", "count")
        assert e.value.retry_after_s
        stream.cancel()


async def test_worker_that_outgrows_the_box_is_ended_and_no_other() -> None:
    models = model("a", mb=60), model("b", mb=60)
    async with running(*models, budget_mb=150) as bench:
        pid = await bench.ask("b", "pid")
        other = asyncio.create_task(bench.ask("b", "count 80 0.05"))
        fat = asyncio.create_task(bench.events("a", "balloon 200 60"))
        await until(lambda: bench.model("a").restarts == 1)
        last = (await fat)[-1]
        assert isinstance(last, Failed)
        assert "it grew to" in last.message
        assert await bench.ask("a", "count 1") == "0 "
        assert len((await other).split()) == 80
        assert await bench.ask("b", "pid") == pid


async def test_measured_memory_takes_the_place_of_the_estimate() -> None:
    """Two models of 60 MB by estimate, and of 25 by measurement, fit into 100."""
    plans = model("a", mb=60), model("b", mb=60)
    build = "test"
    ledger = Ledger()
    for plan in plans:
        ledger.record(plan, build, peak_bytes=30 * MB, requests=100)
    bench = Bench(ledger=ledger)
    await bench.apply(*plans, budget_mb=100)
    try:
        pid = await bench.ask("a", "pid")
        await bench.ask("b", "pid")
        assert await bench.ask("a", "pid") == pid
    finally:
        await asyncio.wait_for(bench.supervisor.shutdown(0), PATIENCE_S)
    entry = next(iter(ledger._entries.values()))
    assert entry.requests == 102


# ── hang ──


async def test_hung_worker_tells_where_it_stands_and_comes_back() -> None:
    limits = replace(LIMITS, progress_s=2)
    async with running(model("m"), limits=limits) as bench:
        pid = await bench.ask("m", "pid")
        assert isinstance((await bench.events("m", "freeze"))[-1], Failed)
        await until(lambda: bench.model("m").restarts == 1)
        assert "hung" in str(bench.model("m").error)
        tail = "\n".join(bench.supervisor._keepers["m"].last_words)
        assert "fake_worker.py" in tail  # faulthandler's stack
        assert await bench.ask("m", "pid") != pid


@pytest.mark.parametrize("how", ["stopped", "halt", "freeze"])
async def test_hang_is_noticed_after_three_of_its_own_steps(how: str) -> None:
    """5 s at the least, and a look in each second; whatever its loop does meanwhile."""
    async with running(model("m", parallel=2)) as bench:
        pid = int(await bench.ask("m", "pid"))
        stream = asyncio.create_task(bench.events("m", "count 100000 0.01"))
        worker = bench.supervisor._keepers["m"].tenure.worker  # type: ignore[union-attr]
        await until(lambda: worker._liveness.stuck_after_s < LIMITS.silence_s)
        if how == "stopped":
            os.kill(pid, signal.SIGSTOP)
        else:
            stream.cancel()
            await asyncio.wait([stream])
            stream = asyncio.create_task(bench.events("m", how))
        event = (await stream)[-1]
        assert isinstance(event, Failed)
        found = re.search(r"neither an engine step nor any work for (\d+) s", event.message)
        assert found, event.message
        assert ("somebody has stopped it" in event.message) == (how == "stopped")
        # by the clock of the looks, which waits with the daemon where others hold the cores
        assert int(found[1]) <= worker._liveness.stuck_after_s + 2 * TICK_S
        assert await bench.ask("m", "count 1") == "0 "


async def test_worker_that_was_stopped_in_its_load_is_noticed() -> None:
    async with running(model("m", "slow-3"), limits=replace(LIMITS, silence_s=2)) as bench:
        asking = asyncio.create_task(bench.ask("m", "count 1"))
        await until(lambda: bench.model("m").state == "starting" and bench.model("m").progress)
        os.kill(bench.model("m").pid or 0, signal.SIGSTOP)
        assert await asking == "0 "
        assert bench.model("m").restarts == 1


async def test_engine_that_computes_without_a_step_is_left_alone() -> None:
    limits = replace(LIMITS, stuck_s=1, silence_s=5)
    async with running(model("m"), limits=limits) as bench:
        assert await bench.ask("m", "compute 8") == "computed"
        assert bench.model("m").restarts == 0


# ── poison ──


async def test_request_that_killed_the_worker_twice_is_refused_and_others_are_served() -> None:
    async with running(model("m")) as bench:
        for _ in range(2):
            assert isinstance((await bench.events("m", "die SIGSEGV"))[-1], Failed)
        with pytest.raises(errors.PoisonedRequest, match="ended the worker"):
            await bench.events("m", "die SIGSEGV")
        assert await bench.ask("m", "count 2") == "0 1 "
        assert bench.model("m").restarts == 2


async def test_innocent_beside_a_killer_is_cleared_by_its_answer() -> None:
    async with running(model("m", parallel=4)) as bench:
        innocent = asyncio.create_task(bench.events("m", "count 50 0.02"))
        await until(lambda: bench.model("m").open == 1)
        await bench.events("m", "die SIGSEGV")
        assert isinstance((await innocent)[-1], Failed)
        again = [asyncio.create_task(bench.events("m", "count 50 0.02")) for _ in range(2)]
        for events in await asyncio.gather(*again):
            assert not isinstance(events[-1], Failed)
        await bench.events("m", "die SIGSEGV")
        assert await bench.ask("m", "count 50 0.02")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_worker_killed_from_outside_blames_no_request(number: signal.Signals) -> None:
    async with running(model("m"), limits=replace(LIMITS, silence_s=2)) as bench:
        for _ in range(3):
            stream = asyncio.create_task(bench.events("m", "count 30 0.05"))
            await until(lambda: bench.model("m").open == 1 and bench.model("m").pid)
            os.kill(bench.model("m").pid or 0, number)
            await stream
        assert len((await bench.ask("m", "count 30 0.05")).split()) == 30


# ── the box has nothing left to start a worker with ──


@pytest.mark.parametrize("lacking", ["socket.socketpair", "subprocess.Popen", "os.pidfd_open"])
async def test_worker_that_cannot_be_started_is_tried_again_less_and_less_often(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the daemon is short of; and nothing is left over of what it had already."""
    n_open: list[int] = []  # descriptors, at each try

    def refuse(*_: object, **__: object) -> None:
        n_open.append(len(list(Path("/proc/self/fd").iterdir())))
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with running(model("a")) as bench:
        with monkeypatch.context() as patched:
            patched.setattr(f"edged.supervisor.spawning.{lacking}", refuse)
            answer = asyncio.create_task(bench.ask("a", "count 1"))
            await until(lambda: len(n_open) > LIMITS.bad_starts + 1)  # and is not given up
            assert "cannot start a worker" in str(bench.model("a").error)
            assert "Too many open files" in str(bench.model("a").error)
            assert bench.model("a").restarts >= LIMITS.bad_starts
            assert len(set(n_open[1:])) == 1
        assert await answer == "0 "


async def test_request_for_a_model_that_found_no_room_does_not_wait_for_its_next_try() -> None:
    limits = replace(LIMITS, memory_retry_s=600, stay_least_s=0, linger_s=0)
    plans = (model("a", mb=80), model("b", mb=80, load="startup"))
    async with running(plans[0], budget_mb=100, limits=limits) as bench:
        busy = asyncio.create_task(bench.first_event("a", "count 1000 0.01"))
        await until(lambda: bench.model("a").open == 1)
        await bench.apply(*plans, budget_mb=100)
        await bench.until("b", "backoff")
        await busy
        assert await bench.ask("b", "count 1") == "0 "
