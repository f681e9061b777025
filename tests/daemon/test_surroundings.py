"""Hardware that goes and comes, sleep, and a wall clock that jumps, with a whole daemon."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

from tests.daemon.appliance import Appliance, appliance, needs_engine
from tests.daemon.support import PATIENCE_S
from tests.nvml import GIB

pytestmark = needs_engine


class Box:
    """The files through which a test plays what happens to the hardware."""

    def __init__(self, folder: Path, *gpus: str) -> None:
        self._gpus, self._slept = folder / "gpus", folder / "slept"
        self.has(*gpus)
        self.has_slept(0)
        self.env = {"EDGED_TEST_GPUS": str(self._gpus), "EDGED_TEST_SLEPT": str(self._slept)}

    def has(self, *gpus: str) -> None:
        self._write(self._gpus, "\n".join(gpus))

    def has_slept(self, seconds: float) -> None:
        self._write(self._slept, str(seconds))

    @staticmethod
    def _write(path: Path, text: str) -> None:
        new = path.with_suffix(".new")
        new.write_text(text)
        new.replace(path)


async def until_degraded(box: Appliance, *lines: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        found = (await box.status())["degraded"]
        if found == list(lines):
            return
        assert time.monotonic() < end, (found, box.log)
        await asyncio.sleep(0.05)


async def test_gpu_that_is_gone_at_a_reload_is_told_until_it_is_back(tmp_path: Path) -> None:
    played = Box(tmp_path, "RTX A", "RTX B")
    async with appliance(tmp_path, "a", env=played.env) as box:
        assert [gpu["name"] for gpu in (await box.status())["hardware"]["gpus"]] == [
            "RTX A",
            "RTX B",
        ]
        pid = await box.ask("a", "pid")
        played.has("RTX B", "lost")
        box.process.send_signal(signal.SIGHUP)
        await until_degraded(box, "the GPU RTX A with 24576 MiB is gone")
        assert "hardware.lost" in box.log
        assert "edged_hardware_lost 1.0" in (await box.client.get("/metrics")).text
        assert await box.ask("a", "pid") == pid  # it needs none
        played.has("RTX A", "RTX B")
        box.process.send_signal(signal.SIGHUP)
        await until_degraded(box)
        assert "hardware.came" in box.log


async def test_sleep_of_the_box_is_a_reason_to_look(tmp_path: Path) -> None:
    played = Box(tmp_path, "RTX A")
    async with appliance(tmp_path, "a", env=played.env) as box:
        pid = await box.ask("a", "pid")
        played.has()
        played.has_slept(3600)
        await until_degraded(box, "the GPU RTX A with 24576 MiB is gone")
        assert "box.slept" in box.log
        assert await box.ask("a", "pid") == pid


async def test_failed_launch_is_a_reason_to_look(tmp_path: Path) -> None:
    played = Box(tmp_path, "RTX A")
    async with appliance(tmp_path, "a--dies-until-mended", env=played.env) as box:
        played.has()
        asking = asyncio.create_task(box.ask("a", "count 1"))
        await until_degraded(box, "the GPU RTX A with 24576 MiB is gone")
        (tmp_path / "mended").touch()
        assert await asking == "0 "


async def test_model_that_requires_a_gpu_never_computes_on_the_cpu(tmp_path: Path) -> None:
    played = Box(tmp_path, "RTX A")
    async with appliance(tmp_path, "a require = 'gpu'", env=played.env) as box:
        with_gpu = await box.until_model("a", state="failed")
        assert "on the CPU only" in with_gpu["error"]  # no engine of this version uses it
        played.has()
        box.process.send_signal(signal.SIGHUP)
        await until_degraded(box, "the GPU RTX A with 24576 MiB is gone")
        without = await box.until_model("a", state="failed")
        assert "no GPU that can be used" in without["error"]
        assert box.workers() == []


async def test_memory_of_gpus_is_measured_for_the_ledger(tmp_path: Path) -> None:
    played = Box(tmp_path, "RTX A", "RTX B")
    async with appliance(tmp_path, "a", env=played.env) as box:
        await box.ask("a", "count 1")
        assert await box.stop() == 0
    ledger = json.loads((tmp_path / "state" / "ledger.json").read_text())
    (entry,) = ledger["launches"].values()
    assert entry["gpu_bytes"] == {"GPU 0": GIB, "GPU 1": GIB}


async def test_gpus_that_nobody_wants_to_use_are_not_missed(tmp_path: Path) -> None:
    played = Box(tmp_path, "RTX A")
    async with appliance(tmp_path, "a", env=played.env) as box:
        box.save(box.toml("a") + '[hardware]\ngpus = "none"\n')
        await box.until_logged("config.applied")
        assert (await box.status())["hardware"]["gpus"] == []
        await until_degraded(box)


async def test_wall_clock_that_jumps_ends_no_wait_and_loses_no_request(tmp_path: Path) -> None:
    env = {"EDGED_TEST_WALL": "400"}
    async with appliance(tmp_path, "a parallel = 1", "b", env=env) as box:
        answers = [asyncio.create_task(box.ask("a", "count 20 0.02")) for _ in range(5)]
        answers += [asyncio.create_task(box.ask("b", "count 20 0.02")) for _ in range(5)]
        box.write("a parallel = 1", "b", "c")
        await box.until_model("c", state="stopped")
        assert await box.ask("c", "count 1") == "0 "
        assert {len(answer.split()) for answer in await asyncio.gather(*answers)} == {20}
        states = {m["name"]: (m["state"], m["restarts"]) for m in (await box.status())["models"]}
        assert states == dict.fromkeys("abc", ("ready", 0))
        assert await box.stop() == 0
