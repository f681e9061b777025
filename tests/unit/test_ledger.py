"""Measured memory: what is believed, kept, forgotten; and disks that do not take it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from edged.plan import ModelPlan
from edged.plan.places import MAIN, gpu
from edged.protocol import Launch, LmdeployLaunch
from edged.supervisor.ledger import Ledger
from tests.daemon.support import model

MB = 1 << 20
PLAN = model("m", mb=100)
BUILD = "0.3.36"


def launch(plan: ModelPlan) -> Launch:
    assert plan.launch is not None
    return plan.launch


def main(ledger: Ledger, plan: ModelPlan, build: str = BUILD) -> int:
    return ledger.wanted(plan, build)[MAIN]


def test_estimate_serves_until_there_is_a_measurement() -> None:
    ledger = Ledger()
    assert main(ledger, PLAN) == 100 * MB
    ledger.record(PLAN, BUILD, peak_bytes=50 * MB, requests=100)
    assert main(ledger, PLAN) == int(50 * MB * 1.02)


def test_measurement_of_a_worker_that_hardly_worked_does_not_lower_the_estimate() -> None:
    ledger = Ledger()
    ledger.record(PLAN, BUILD, peak_bytes=50 * MB, requests=1)
    assert main(ledger, PLAN) == 100 * MB
    ledger.record(PLAN, BUILD, peak_bytes=150 * MB, requests=1)
    assert main(ledger, PLAN) == int(150 * MB * 1.02)


def test_each_gpu_has_its_own_measurement() -> None:
    settings = LmdeployLaunch("/python", (0, 2), 30 * MB, 10 * MB)
    plan = replace(PLAN, launch=replace(launch(PLAN), engine="lmdeploy", lmdeploy=settings))
    ledger = Ledger()
    assert ledger.wanted(plan, BUILD) == {MAIN: 100 * MB, gpu(0): 40 * MB, gpu(2): 40 * MB}
    ledger.record(
        plan, BUILD, peak_bytes=MB, requests=1, gpu_bytes={gpu(0): 50 * MB, gpu(2): 20 * MB}
    )
    assert ledger.wanted(plan, BUILD) == {MAIN: 100 * MB, gpu(0): 50 * MB, gpu(2): 40 * MB}
    ledger.record(plan, BUILD, peak_bytes=MB, requests=100, gpu_bytes={gpu(0): 45 * MB})
    assert ledger.wanted(plan, BUILD)[gpu(0)] == 50 * MB
    assert ledger.wanted(plan, BUILD)[gpu(2)] == 20 * MB


def test_gpu_that_nvml_does_not_tell_of_keeps_its_estimate() -> None:
    settings = LmdeployLaunch("/python", (0,), 30 * MB, 10 * MB)
    plan = replace(PLAN, launch=replace(launch(PLAN), engine="lmdeploy", lmdeploy=settings))
    ledger = Ledger()
    ledger.record(plan, BUILD, peak_bytes=MB, requests=100)
    assert ledger.wanted(plan, BUILD)[gpu(0)] == 40 * MB


@pytest.mark.parametrize("change", [{"context": 9}, {"parallel": 9}, {"file_id": "2"}])
def test_another_launch_or_build_is_another_entry(change: dict[str, object]) -> None:
    ledger = Ledger()
    ledger.record(PLAN, BUILD, peak_bytes=50 * MB, requests=100, load_s=3.0)
    other = replace(PLAN, launch=replace(launch(PLAN), **change))  # type: ignore[arg-type]
    assert main(ledger, other) == 100 * MB
    assert main(ledger, PLAN, "0.3.37") == 100 * MB
    assert ledger.load_s(PLAN, BUILD) == 3.0
    assert ledger.load_s(other, BUILD) == 0.0


def test_same_launch_under_another_name_is_known() -> None:
    ledger = Ledger()
    ledger.record(PLAN, BUILD, peak_bytes=50 * MB, requests=100)
    other = replace(PLAN, launch=replace(launch(PLAN), model="other"))
    assert main(ledger, other) == int(50 * MB * 1.02)


def test_file_with_a_digest_is_known_wherever_it_lies() -> None:
    ledger = Ledger()
    here, there = (with_file(f"/{n}/m.gguf", n, "d1") for n in ("one", "two"))
    ledger.record(here, BUILD, peak_bytes=50 * MB, requests=100, load_s=3.0)
    assert ledger.load_s(there, BUILD) == 3.0
    assert main(ledger, there) == int(50 * MB * 1.02)
    assert ledger.load_s(with_file("/one/m.gguf", "one", "d2"), BUILD) == 0.0
    assert ledger.load_s(with_file("/one/m.gguf", "one", None), BUILD) == 0.0


def with_file(path: str, file_id: str, digest: str | None) -> ModelPlan:
    launched = replace(launch(PLAN), path=path, file_id=file_id)
    return replace(PLAN, launch=launched, digests={path: digest} if digest else {})


async def test_what_the_engine_and_nvml_say_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    ledger = Ledger(path)
    ledger.record(
        PLAN, BUILD, peak_bytes=MB, gpu_bytes={gpu(0): 7 * MB}, buffers={"CPU KV": 3 * MB}
    )
    ledger.record(PLAN, BUILD, peak_bytes=MB, gpu_bytes={gpu(0): 5 * MB, gpu(1): MB})
    await ledger.save()
    entry = next(iter(json.loads(path.read_text())["launches"].values()))
    assert entry["gpu_bytes"] == {"GPU 0": 7 * MB, "GPU 1": MB}
    assert entry["buffers"] == {"CPU KV": 3 * MB}


async def test_ledger_outlives_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ledger.json"
    ledger = Ledger(path)
    ledger.record(PLAN, BUILD, peak_bytes=50 * MB, requests=100)
    await ledger.save()
    assert main(Ledger(path), PLAN) == int(50 * MB * 1.02)
    assert [each.name for each in path.parent.iterdir()] == ["ledger.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99, "launches": {}}', "\x00" * 50])
def test_ledger_that_cannot_be_read_is_an_empty_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(text)
    assert main(Ledger(path), PLAN) == 100 * MB


async def test_disk_that_does_not_take_it_is_noted_and_tried_again(tmp_path: Path) -> None:
    blocked = tmp_path / "state"
    blocked.touch()
    ledger = Ledger(blocked / "ledger.json")
    ledger.record(PLAN, BUILD, peak_bytes=50 * MB, requests=100)
    await ledger.save()
    assert "measured memory is not kept" in str(ledger.problem)
    assert main(ledger, PLAN) == int(50 * MB * 1.02)
    blocked.unlink()
    await ledger.save()
    assert ledger.problem is None
    assert main(Ledger(blocked / "ledger.json"), PLAN) == int(50 * MB * 1.02)
