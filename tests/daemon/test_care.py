"""A worker that nobody asks for long is asked for one token, so that no client finds it dead."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from tests.daemon.support import LIMITS, is_alive, model, running, until

_SOON = replace(LIMITS, probe_idle_s=1.0, proof_s=1.0)


async def test_idle_worker_that_hangs_is_replaced_before_anybody_asks() -> None:
    """Its loop lives and says so every moment; only a token would show."""
    async with running(model("m", load="startup"), limits=_SOON) as bench:
        pid = int(await bench.ask("m", "pid"))
        client = asyncio.create_task(bench.events("m", "halt"))
        await until(lambda: bench.model("m").open == 1)
        client.cancel()
        await until(lambda: bench.model("m").restarts == 1)
        assert "asked for a sign of life while idle" in str(bench.model("m").error)
        await bench.until("m", "ready")
        assert not is_alive(pid)
        assert await bench.ask("m", "count 1") == "0 "


async def test_idle_worker_that_answers_is_asked_again_and_kept() -> None:
    limits = replace(_SOON, probe_idle_s=0.2, proof_s=LIMITS.proof_s)
    async with running(model("m"), limits=limits) as bench:
        pid = await bench.ask("m", "pid")
        tenure = bench.supervisor._keepers["m"].tenure
        assert tenure is not None
        await until(lambda: tenure.worker.answered >= 3)  # one of us and two of nobody
        assert await bench.ask("m", "pid") == pid
        assert bench.model("m").restarts == 0


async def test_model_that_is_not_loaded_is_not_asked() -> None:
    limits = replace(_SOON, probe_idle_s=0.0)
    async with running(model("m"), model("used"), limits=limits) as bench:
        await bench.ask("used", "count 1")
        used = bench.supervisor._keepers["used"].tenure
        assert used is not None
        await until(lambda: used.worker.answered >= 3)  # rounds that looked at both
        assert bench.model("m").state == "stopped"
        assert bench.model("m").pid is None
