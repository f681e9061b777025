"""The supervisor with real processes: the fake worker does what each test needs."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from pathlib import Path

import pytest
from msgspec.structs import replace

from edged import errors
from edged.protocol import Failed, Finish, Generate, Started, Text
from tests.daemon.support import (
    LIMITS,
    PATIENCE_S,
    is_alive,
    model,
    running,
    text_of,
    until,
)


async def test_on_demand_model_loads_with_the_first_request() -> None:
    async with running(model("m")) as bench:
        assert bench.model("m").state == "stopped"
        events = await bench.events("m", "count 3")
        assert isinstance(events[0], Started)
        assert isinstance(events[-1], Finish)
        assert text_of(events) == "0 1 2 "
        status = bench.model("m")
        assert (status.state, status.build, status.open) == ("ready", "fake 1", 0)
        assert status.memory_bytes
        assert status.memory_bytes > 1 << 20


async def test_startup_model_loads_without_a_request() -> None:
    async with running(model("m", load="startup")) as bench:
        await asyncio.wait_for(bench.supervisor.settled(), PATIENCE_S)
        assert bench.model("m").state == "ready"


async def test_unknown_model_is_not_found() -> None:
    async with running(model("m")) as bench:
        with pytest.raises(errors.ModelNotFound):
            await bench.ask("other", "count")


async def test_refused_model_fails_with_the_plans_words() -> None:
    async with running(model("m", refusal="needs 900 GiB")) as bench:
        with pytest.raises(errors.ModelFailed, match="needs 900 GiB"):
            await bench.ask("m", "count")
        await bench.until("m", "failed")


async def test_upstream_has_no_worker_and_is_ready() -> None:
    upstream = replace(model("m", load="startup"), engine="upstream", launch=None)
    async with running(upstream) as bench:
        await bench.until("m", "ready")
        assert bench.model("m").pid is None
        with pytest.raises(errors.ModelFailed, match="served elsewhere"):
            await bench.ask("m", "count")


async def test_bad_model_fails_at_once_and_is_tried_again_after_a_reload() -> None:
    async with running(model("m", "bad", load="startup")) as bench:
        status = await bench.until("m", "failed")
        assert status.error == "not a model file: it begins with 'hello'"
        assert status.restarts == 0
        with pytest.raises(errors.ModelFailed, match="begins with 'hello'"):
            await bench.ask("m", "count")
        await bench.apply(model("m", load="startup"))
        await bench.until("m", "ready")
        assert bench.model("m").error is None


async def test_missing_engine_fails_at_once() -> None:
    async with running(model("m", "no-engine", load="startup")) as bench:
        status = await bench.until("m", "failed")
        assert status.error == "the fake engine is not installed"


async def test_five_bad_starts_in_a_row_fail_the_model_with_its_last_words() -> None:
    async with running(model("m", "dies", load="startup")) as bench:
        status = await bench.until("m", "failed")
        assert status.restarts == LIMITS.bad_starts
        assert "5 starts in a row failed" in str(status.error)
        assert "cannot allocate a thing" in str(status.error)
        assert status.stderr_tail == ("cannot allocate a thing",)


async def test_request_waits_through_bad_starts(tmp_path: Path) -> None:
    path = str(tmp_path / "m--dies-until-mended.gguf")
    async with running(model("m", path), limits=replace(LIMITS, bad_starts=100)) as bench:
        answer = asyncio.create_task(bench.ask("m", "count 2"))
        await until(lambda: bench.model("m").restarts >= 2)
        assert "SIGSEGV" in str(bench.model("m").error)
        (tmp_path / "mended").touch()
        assert await answer == "0 1 "


async def test_load_that_takes_too_long_is_told_to_the_request() -> None:
    limits = replace(LIMITS, start_wait_s=0.3)
    async with running(model("m", "slow-30"), limits=limits) as bench:
        with pytest.raises(errors.ModelLoading, match="is starting") as caught:
            await bench.ask("m", "count")
        assert caught.value.retry_after_s
        assert bench.model("m").queued == 0


async def test_load_without_any_sign_is_killed() -> None:
    limits = replace(LIMITS, load_silence_s=1, bad_starts=1)
    async with running(model("m", "silent", load="startup"), limits=limits) as bench:
        status = await bench.until("m", "failed")
        assert "loading made no progress" in str(status.error)


async def test_idle_model_is_unloaded_and_comes_back() -> None:
    async with running(model("m", idle_unload_s=0.5)) as bench:
        pid = int(await bench.ask("m", "pid"))
        await bench.until("m", "stopped")
        await until(lambda: not is_alive(pid))
        assert int(await bench.ask("m", "pid")) != pid
        assert bench.model("m").restarts == 0


async def test_more_requests_than_places_wait_and_all_are_answered() -> None:
    async with running(model("m", parallel=2, queue=100)) as bench:
        answers = [asyncio.create_task(bench.ask("m", "count 3 0.05")) for _ in range(20)]
        await until(lambda: bench.model("m").open == 3)  # parallel and one ahead
        assert await asyncio.gather(*answers) == ["0 1 2 "] * 20
        assert (bench.model("m").open, bench.model("m").queued) == (0, 0)


async def test_full_queue_refuses_with_a_time_to_wait() -> None:
    async with running(model("m", parallel=1, queue=2)) as bench:
        open_ones = [asyncio.create_task(bench.first_event("m", "stall")) for _ in range(3)]
        await until(lambda: bench.model("m").open + bench.model("m").queued == 3)
        with pytest.raises(errors.QueueFull, match="try again later") as caught:
            await bench.ask("m", "count")
        assert caught.value.retry_after_s in range(1, 61)
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)
        assert await bench.ask("m", "count 1") == "0 "


async def test_killed_worker_costs_its_requests_only_and_serves_again() -> None:
    async with running(model("a"), model("b")) as bench:
        victim = int(await bench.ask("a", "pid"))
        other = asyncio.create_task(bench.ask("b", "count 80 0.05"))
        hit = [asyncio.create_task(bench.events("a", "count 1000 0.05")) for _ in range(2)]
        await until(lambda: bench.model("b").open == 1 and bench.model("a").open == 2)
        os.kill(victim, signal.SIGKILL)
        for events in await asyncio.gather(*hit):
            assert isinstance(events[-1], Failed)
            assert events[-1].code == "worker_crashed"
            assert "SIGKILL" in events[-1].message
            assert "memory" in events[-1].message
            assert sum(isinstance(event, Failed | Finish) for event in events) == 1
        assert int(await bench.ask("a", "pid")) != victim
        assert bench.model("a").restarts == 1
        assert len((await other).split()) == 80
        assert bench.model("b").restarts == 0


async def test_request_in_the_line_survives_the_workers_death() -> None:
    async with running(model("m", parallel=1)) as bench:
        holders = [asyncio.create_task(bench.events("m", "stall")) for _ in range(2)]
        await until(lambda: bench.model("m").open == 2)
        waiting = asyncio.create_task(bench.ask("m", "count 2"))
        await until(lambda: bench.model("m").queued == 1)
        os.kill(bench.model("m").pid or 0, signal.SIGKILL)
        assert await waiting == "0 1 "
        for events in await asyncio.gather(*holders):
            assert isinstance(events[-1], Failed)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("die SIGSEGV", "memory fault in the engine"),
        ("die SIGABRT", "GGML_ASSERT(dead) failed"),
        ("die SIGILL", "instruction that this CPU does not have"),
        ("die SIGBUS", "model file was truncated"),
        ("exit 70", "exit code 70"),
        ("exit 0", "without being asked to"),
        ("garbage", "spoke nonsense"),
        ("giant", "spoke nonsense"),
        ("hangup", "closed its socket"),
    ],
)
async def test_death_is_told_in_plain_words(order: str, words: str) -> None:
    async with running(model("m")) as bench:
        events = await bench.events("m", order)
        assert isinstance(events[-1], Failed)
        assert events[-1].code == "worker_crashed"
        assert words in events[-1].message
        await until(lambda: bench.model("m").restarts == 1)
        assert words in str(bench.model("m").error)
        assert await bench.ask("m", "count 1") == "0 "


async def test_answer_said_before_death_arrives() -> None:
    async with running(model("m")) as bench:
        assert text_of(await bench.events("m", "die SIGKILL")) == "last "


async def test_busy_worker_without_steps_is_killed() -> None:
    async with running(model("m"), limits=replace(LIMITS, progress_s=2)) as bench:
        events = await bench.events("m", "stall")
        assert isinstance(events[-1], Failed)
        assert "neither an engine step nor any work" in events[-1].message


async def test_slow_worker_with_steps_is_left_alone() -> None:
    async with running(model("m"), limits=replace(LIMITS, progress_s=5)) as bench:
        assert len((await bench.ask("m", "count 7 1")).split()) == 7


async def test_idle_worker_that_was_stopped_is_killed() -> None:
    async with running(model("m"), limits=replace(LIMITS, silence_s=2)) as bench:
        pid = int(await bench.ask("m", "pid"))
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: bench.model("m").restarts == 1)
        assert "not a sign of life" in str(bench.model("m").error)
        assert not is_alive(pid)


async def test_worker_that_ignores_sigterm_is_killed() -> None:
    async with running(model("m", "stubborn"), limits=replace(LIMITS, stop_s=0.5)) as bench:
        pid = int(await bench.ask("m", "pid"))
        await bench.apply()
        await until(lambda: not is_alive(pid))


async def test_worker_that_does_not_read_costs_no_unbounded_memory() -> None:
    limits = replace(LIMITS, queue_wait_s=3, start_wait_s=30)
    async with running(model("m", "deaf", parallel=50), limits=limits) as bench:
        await bench.apply(model("m", "deaf", parallel=50))
        prompt = "x" * (1 << 20)
        tasks = [asyncio.create_task(bench.events("m", prompt)) for _ in range(20)]
        await until(lambda: bench.model("m").open == 20)
        await asyncio.sleep(0.5)
        keeper = bench.supervisor._keepers["m"]
        transport = keeper.tenure.worker._connection._transport
        assert transport.get_write_buffer_size() < 4 << 20
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not keeper.tenure.worker._streams


async def test_disconnects_leave_nothing_behind() -> None:
    async with running(model("m", parallel=8, queue=1000)) as bench:
        await bench.ask("m", "count 1")

        async def hang_up(n: int) -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(bench.events("m", "count 100000 0.001"), 0.001 * (n % 40))

        for _ in range(5):
            await asyncio.gather(*[hang_up(n) for n in range(100)])
        assert (bench.model("m").open, bench.model("m").queued) == (0, 0)
        assert not bench.supervisor._keepers["m"].tenure.worker._streams
        await until(lambda: bench.model("m").stats.running == 0)
        assert await bench.ask("m", "others") == "0"
        assert bench.model("m").restarts == 0


async def test_flood_costs_bounded_memory_and_the_slow_reader_its_answer() -> None:
    async with running(model("m")) as bench:
        async with aclosing(bench.supervisor.generate("m", Generate(Text("flood")))) as events:
            await anext(events)  # and then this reader sleeps
            stream = next(iter(bench.supervisor._keepers["m"].tenure.worker._streams.values()))
            await until(lambda: stream.ended)
            assert len(stream._events) < 2000
            rest = [event async for event in events]
        assert isinstance(rest[-1], Failed)
        assert "reads too slowly" in rest[-1].message
        assert await bench.ask("m", "count 2") == "0 1 "
        await until(lambda: bench.model("m").stats.running == 0)


async def test_slow_reader_gets_every_character() -> None:
    async with running(model("m")) as bench:
        async with aclosing(bench.supervisor.generate("m", Generate(Text("count 3000")))) as events:
            got = [await anext(events)]
            stream = next(iter(bench.supervisor._keepers["m"].tenure.worker._streams.values()))
            await until(lambda: stream.ended)
            got += [event async for event in events]
        assert text_of(got).split() == [str(n) for n in range(3000)]
        assert sum(getattr(event, "n_tokens", 0) for event in got) == 3000
        assert len(got) < 1000


# ── reload ──


async def test_unchanged_model_keeps_worker_and_stream() -> None:
    async with running(model("a")) as bench:
        stream = asyncio.create_task(bench.ask("a", "count 30 0.05"))
        await until(lambda: bench.model("a").open == 1)
        pid = bench.model("a").pid
        await bench.apply(model("a"), model("b", load="startup"))
        await bench.until("b", "ready")
        await bench.apply(model("a"))
        assert len((await stream).split()) == 30
        assert bench.model("a").pid == pid


async def test_updated_model_keeps_its_worker_and_takes_the_new_settings() -> None:
    async with running(model("a", idle_unload_s=None)) as bench:
        pid = int(await bench.ask("a", "pid"))
        await bench.apply(model("a", idle_unload_s=0.2))
        await bench.until("a", "stopped")
        await until(lambda: not is_alive(pid))


async def test_removed_model_finishes_its_requests_and_stops() -> None:
    async with running(model("a"), model("b")) as bench:
        stream = asyncio.create_task(bench.ask("a", "count 10 0.05"))
        waiting = [asyncio.create_task(bench.ask("a", "count 2 0.1")) for _ in range(4)]
        await until(lambda: bench.model("a").queued == 2)
        pid = bench.model("a").pid or 0
        await bench.apply(model("b"))
        with pytest.raises(errors.ModelNotFound):
            await bench.ask("a", "count")
        assert len((await stream).split()) == 10
        assert await asyncio.gather(*waiting) == ["0 1 "] * 4
        await until(lambda: not is_alive(pid))
        await until(lambda: not bench.supervisor._leaving)


async def test_removed_model_comes_back_beside_its_leaving_self() -> None:
    async with running(model("a")) as bench:
        stream = asyncio.create_task(bench.ask("a", "count 20 0.05"))
        await until(lambda: bench.model("a").open == 1)
        await bench.apply()
        await bench.apply(model("a"))
        assert await bench.ask("a", "count 1") == "0 "
        assert len((await stream).split()) == 20


async def test_replaced_model_finishes_old_requests_and_serves_new_ones_anew() -> None:
    """Both do not fit: the old one leaves first."""
    async with running(model("a", mb=60), budget_mb=100) as bench:
        stream = asyncio.create_task(bench.ask("a", "count 10 0.05"))
        await until(lambda: bench.model("a").open == 1)
        old = bench.model("a").pid or 0
        await bench.apply(model("a", "changed", mb=60), budget_mb=100)
        new = int(await bench.ask("a", "pid"))
        assert new != old
        assert not is_alive(old)
        assert len((await stream).split()) == 10
        assert bench.model("a").restarts == 0


async def test_change_taken_back_while_draining_keeps_the_worker() -> None:
    async with running(model("a", mb=60), budget_mb=100) as bench:
        stream = asyncio.create_task(bench.ask("a", "count 20 0.05"))
        await until(lambda: bench.model("a").open == 1)
        pid = bench.model("a").pid
        await bench.apply(model("a", "changed", mb=60), budget_mb=100)
        await bench.until("a", "draining")
        await bench.apply(model("a", mb=60), budget_mb=100)
        await bench.until("a", "ready")
        assert len((await stream).split()) == 20
        assert int(await bench.ask("a", "pid")) == pid


@pytest.mark.parametrize("budget_mb", [1000, 100])
async def test_replaced_by_a_bad_file_goes_back_and_says_so(budget_mb: int) -> None:
    """Beside the old worker where both fit, and after it where they do not."""
    old, bad = model("a", mb=60, load="startup"), model("a", "bad", mb=60, load="startup")
    async with running(old, budget_mb=budget_mb) as bench:
        pid = (await bench.until("a", "ready")).pid
        await bench.apply(bad, budget_mb=budget_mb)
        answers = [await bench.ask("a", "count 1")]
        await until(lambda: bench.model("a").rolled_back)
        assert "not a model file" in str(bench.model("a").rolled_back)
        assert [*answers, await bench.ask("a", "count 1")] == ["0 "] * 2
        assert (bench.model("a").pid == pid) == (budget_mb == 1000)
        await bench.apply(model("a", "slow-0", mb=60, load="startup"), budget_mb=budget_mb)
        await until(lambda: bench.model("a").pid not in (None, pid))
        await until(lambda: bench.model("a").state == "ready")
        assert bench.model("a").rolled_back is None
        assert await bench.ask("a", "count 1") == "0 "


async def test_request_that_cannot_end_before_the_drain_limit_is_told() -> None:
    async with running(model("a"), limits=replace(LIMITS, drain_s=0.5)) as bench:
        stream = asyncio.create_task(bench.events("a", "count 100000 0.05"))
        await until(lambda: bench.model("a").open == 1)
        await bench.apply(model("a", "changed"))
        last = (await stream)[-1]
        assert isinstance(last, Failed)
        assert last.code == "shutting_down"
        assert "was changed" in last.message


async def test_model_removed_while_it_loads_ends_its_requests() -> None:
    async with running(model("a", "slow-30")) as bench:
        waiting = asyncio.create_task(bench.ask("a", "count"))
        await bench.until("a", "starting")
        await until(lambda: bench.model("a").pid)
        pid = bench.model("a").pid or 0
        await bench.apply()
        with pytest.raises(errors.ShuttingDown, match="was removed"):
            await waiting
        await until(lambda: not is_alive(pid))


async def test_model_changed_while_it_loads_starts_the_new_one() -> None:
    async with running(model("a", "slow-30")) as bench:
        waiting = asyncio.create_task(bench.ask("a", "count 1"))
        await until(lambda: bench.model("a").pid)
        await bench.apply(model("a"))
        assert await waiting == "0 "


# ── memory ──


async def test_idle_model_leaves_for_one_that_is_asked_for() -> None:
    models = model("a", mb=60), model("b", mb=60)
    async with running(*models, budget_mb=100) as bench:
        pid = int(await bench.ask("a", "pid"))
        assert await bench.ask("b", "count 1") == "0 "
        assert not is_alive(pid)
        assert bench.model("a").state == "stopped"
        assert await bench.ask("a", "count 1") == "0 "


async def test_pinned_and_busy_models_stay() -> None:
    models = model("a", mb=60, pin=True), model("b", mb=60)
    async with running(*models, budget_mb=100) as bench:
        await bench.ask("a", "count 1")
        with pytest.raises(errors.InsufficientMemory, match="pinned"):
            await bench.ask("b", "count")
        assert bench.model("b").state == "stopped"
        assert "MiB" in str(bench.model("b").error)


async def test_evicted_startup_model_waits_for_a_request() -> None:
    models = model("a", mb=60, load="startup"), model("b", mb=60)
    async with running(*models, budget_mb=100) as bench:
        await bench.until("a", "ready")
        await bench.ask("b", "count 1")
        await bench.until("a", "stopped")
        assert bench.supervisor.missing() == []
        await asyncio.wait_for(bench.supervisor.settled(), PATIENCE_S)
        assert await bench.ask("a", "count 1") == "0 "


async def test_request_that_is_faster_than_its_eviction_keeps_the_model() -> None:
    models = model("a", mb=60), model("b", mb=60)
    async with running(*models, budget_mb=100) as bench:
        pid = await bench.ask("a", "pid")
        stream = asyncio.create_task(bench.ask("a", "count 20 0.05"))
        wanting = asyncio.create_task(bench.ask("b", "count 1"))
        bench.supervisor._keepers["a"].evict()
        assert await bench.ask("a", "pid") == pid
        assert len((await stream).split()) == 20
        assert await wanting == "0 "  # as soon as nobody uses the other


async def test_startup_model_without_room_starts_once_there_is() -> None:
    models = model("a", mb=60, load="startup", pin=True), model("b", mb=60, load="startup")
    async with running(*models, budget_mb=100) as bench:
        await asyncio.wait_for(bench.supervisor.settled(), PATIENCE_S)
        await until(
            lambda: {bench.model("a").state, bench.model("b").state} == {"ready", "backoff"}
        )
        await bench.apply(*models, budget_mb=200)
        await until(lambda: bench.model("a").state == bench.model("b").state == "ready")


async def test_memory_of_a_worker_is_measured() -> None:
    async with running(model("a")) as bench:
        await bench.ask("a", "count 1")
        before = bench.model("a").memory_bytes or 0
        await bench.ask("a", "balloon 50")
        assert (bench.model("a").memory_bytes or 0) > before + (40 << 20)


# ── the end ──


async def test_shutdown_lets_streams_finish_and_admits_nothing() -> None:
    async with running(model("a"), model("b", "slow-30")) as bench:
        streams = [asyncio.create_task(bench.ask("a", "count 20 0.05")) for _ in range(3)]
        loading = asyncio.create_task(bench.ask("b", "count"))
        await until(lambda: bench.model("a").open == 3 and bench.model("b").pid)
        pids = [bench.model(name).pid or 0 for name in "ab"]
        ending = asyncio.create_task(bench.supervisor.shutdown(30))
        with pytest.raises(errors.ShuttingDown):
            await loading
        with pytest.raises(errors.ShuttingDown):
            await bench.ask("a", "count")
        assert [len(text.split()) for text in await asyncio.gather(*streams)] == [20] * 3
        await ending
        assert not any(is_alive(pid) for pid in pids)


async def test_shutdown_ends_what_does_not_finish_in_time() -> None:
    async with running(model("a")) as bench:
        stream = asyncio.create_task(bench.events("a", "count 100000 0.05"))
        await until(lambda: bench.model("a").open == 1)
        await bench.supervisor.shutdown(0.5)
        last = (await stream)[-1]
        assert isinstance(last, Failed)
        assert last.code == "shutting_down"


async def test_kill_ends_a_patient_shutdown() -> None:
    async with running(model("a")) as bench:
        stream = asyncio.create_task(bench.events("a", "count 100000 0.05"))
        await until(lambda: bench.model("a").open == 1)
        ending = asyncio.create_task(bench.supervisor.shutdown(1000))
        await bench.until("a", "draining")
        bench.supervisor.kill()
        await asyncio.wait_for(ending, PATIENCE_S)
        assert isinstance((await stream)[-1], Failed)


async def test_stderr_flood_keeps_the_last_lines_only() -> None:
    async with running(model("a")) as bench:
        assert await bench.ask("a", "stderr 5000") == "written"
        await until(lambda: bench.model("a").stderr_tail[-1:] == ("line 4999",))
        assert len(bench.model("a").stderr_tail) == 50
