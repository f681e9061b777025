import os
import sys
from pathlib import Path
from typing import Any

import pytest

from edged import hardware
from edged.config import HardwareOverrides
from edged.hardware import Gpu, detect, nvml
from tests.nvml import GIB, Device, Nvml, named
from tests.unit.test_cgroup import unified, write

MEMINFO = "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB"


def cpuinfo(n: int, extra: str = "") -> str:
    block = "processor\t: {}\nmodel name\t: Test CPU @ 3 GHz\nflags\t\t: fpu avx2 avx512f mmx\n"
    return "\n".join(block.format(k) + extra for k in range(n))


def topology(siblings: list[str]) -> dict[str, str]:
    base = "sys/devices/system/cpu"
    return {f"{base}/cpu{n}/topology/core_cpus_list": text for n, text in enumerate(siblings)}


def box(root: Path, n_cpus: int = 4, **files: str) -> Path:
    return write(root, {"proc/cpuinfo": cpuinfo(n_cpus), "proc/meminfo": MEMINFO, **files})


@pytest.fixture
def affinity(monkeypatch: pytest.MonkeyPatch) -> Any:
    def allow(*cpus: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(cpus))

    allow(0, 1, 2, 3)
    return allow


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-library.so.1")


# ── CPU ──


@pytest.mark.usefixtures("affinity")
def test_hardware_threads_share_cores(tmp_path: Path) -> None:
    cpu = detect(root=write(box(tmp_path), topology(["0,2", "1,3", "0,2", "1,3"]))).cpu
    assert (cpu.physical_cores, cpu.usable_cores, cpu.usable_cpus) == (2, 2, 4)
    assert cpu.model == "Test CPU @ 3 GHz"
    assert cpu.flags == ("avx2", "avx512f")


def test_affinity_limits_cores(tmp_path: Path, affinity: Any) -> None:
    affinity(0, 2)
    found = detect(root=write(box(tmp_path), topology(["0,2", "1,3", "0,2", "1,3"])))
    assert (found.cpu.physical_cores, found.cpu.usable_cores, found.cpu.usable_cpus) == (2, 1, 2)
    assert "CPU affinity leaves 2 of 4 hardware threads" in found.notes


@pytest.mark.parametrize(
    ("quota", "cores", "cpus"),
    [("400000", 4, 4), ("250000", 2, 3), ("100000", 1, 1), ("20000", 1, 1), ("800000", 4, 4)],
)
@pytest.mark.usefixtures("affinity")
def test_quota_limits_cores(tmp_path: Path, quota: str, cores: int, cpus: int) -> None:
    files = {**unified("0::/"), "sys/fs/cgroup/cpu.max": f"{quota} 100000"}
    cpu = detect(root=write(box(tmp_path), {**topology(["0", "1", "2", "3"]), **files})).cpu
    assert (cpu.usable_cores, cpu.usable_cpus) == (cores, cpus)


@pytest.mark.usefixtures("affinity")
def test_cores_come_from_cpuinfo_without_sysfs(tmp_path: Path) -> None:
    assert detect(root=box(tmp_path)).cpu.physical_cores == 4
    ids = cpuinfo(4, "physical id\t: 0\ncore id\t\t: 5\n")
    (tmp_path / "proc/cpuinfo").write_text(ids)
    assert detect(root=tmp_path).cpu.physical_cores == 1


@pytest.mark.usefixtures("affinity")
def test_arm_box_is_named(tmp_path: Path) -> None:
    arm = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b"
    root = write(tmp_path, {"proc/cpuinfo": arm, "proc/device-tree/model": "Raspberry Pi 5\0"})
    cpu = detect(root=root).cpu
    assert cpu.model == "Raspberry Pi 5"
    assert cpu.flags == ("asimd", "asimddp")


def test_box_that_tells_nothing_still_has_an_answer(tmp_path: Path) -> None:
    found = detect(root=tmp_path)
    assert found.cpu.usable_cores >= 1
    assert found.cpu.model
    assert found.memory.limit_bytes > 0
    assert any("/proc/meminfo" in note for note in found.notes)


# ── memory ──


@pytest.mark.usefixtures("affinity")
def test_memory_without_limits_is_the_ram(tmp_path: Path) -> None:
    memory = detect(root=box(tmp_path)).memory
    assert (memory.total_bytes, memory.limit_bytes) == (16 * GIB, 16 * GIB)
    assert memory.available_bytes == 8 * GIB


@pytest.mark.usefixtures("affinity")
def test_memory_limit_of_the_cgroup_counts(tmp_path: Path) -> None:
    files = {
        **unified("0::/"),
        "sys/fs/cgroup/memory.max": str(4 * GIB),
        "sys/fs/cgroup/memory.current": str(3 * GIB),
    }
    found = detect(root=write(box(tmp_path), files))
    assert (found.memory.limit_bytes, found.memory.available_bytes) == (4 * GIB, GIB)
    assert "the control group allows 4096 MiB of 16384 MiB memory" in found.notes


@pytest.mark.usefixtures("affinity")
def test_limit_above_the_ram_is_none(tmp_path: Path) -> None:
    files = {**unified("0::/"), "sys/fs/cgroup/memory.max": str(64 * GIB)}
    found = detect(root=write(box(tmp_path), files))
    assert found.memory.limit_bytes == 16 * GIB
    assert found.notes == ()


# ── GPUs ──


def with_nvml(monkeypatch: pytest.MonkeyPatch, driver: Nvml) -> None:
    monkeypatch.setattr(nvml, "load", lambda: driver)


def gpu(index: int, name: str) -> Gpu:
    return Gpu(index, name, 24 * GIB, 20 * GIB, (8, 6), "550.127.05")


def test_nvml_gpus_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Nvml(named("RTX A", "lost", "RTX B"))
    with_nvml(monkeypatch, driver)
    found = detect(root=box(tmp_path))
    assert found.gpus == (gpu(0, "RTX A"), gpu(2, "RTX B"))
    assert "GPU 1 cannot be used: GPU is lost" in found.notes
    assert driver.closed


def test_memory_of_a_process_is_added_up_over_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Device("A", processes=((7, 3 * GIB),))
    second = Device("B", processes=((7, GIB), (8, 9 * GIB), (7, None)))
    driver = Nvml([first, *named("lost"), second])
    with_nvml(monkeypatch, driver)
    assert nvml.used_bytes(7) == 4 * GIB
    assert nvml.used_bytes(9) == 0
    assert driver.closed
    with_nvml(monkeypatch, Nvml([], start="Driver/library version mismatch"))
    assert nvml.used_bytes(7) == 0


def test_driver_mismatch_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_nvml(monkeypatch, Nvml([], start="Driver/library version mismatch"))
    found = detect(root=box(tmp_path))
    assert found.gpus == ()
    assert any("Driver/library version mismatch" in note for note in found.notes)


def test_mig_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_nvml(monkeypatch, Nvml([Device("H200", mig=(1, 1))]))
    found = detect(root=box(tmp_path))
    assert found.gpus == ()
    assert any("split by MIG" in note for note in found.notes)


def test_gpus_of_the_configuration_overrule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_nvml(monkeypatch, Nvml(named("A", "B")))
    chosen = detect(HardwareOverrides(gpus=(1, 5)), root=box(tmp_path))
    assert [g.name for g in chosen.gpus] == ["B"]
    assert any(note.startswith("GPU 5 of hardware.gpus does not exist") for note in chosen.notes)
    nothing = detect(HardwareOverrides(gpus="none"), root=tmp_path)
    assert nothing.gpus == ()
    assert any('hardware.gpus = "none"' in note for note in nothing.notes)


@pytest.mark.parametrize(
    ("vendor", "kind", "expected"),
    [
        ("0x10de", "0x030000", ["the NVIDIA GPU at 0000:01:00.0 is not used: its driver is not"]),
        ("0x1002", "0x038000", ["the AMD GPU at 0000:01:00.0 is not used: no engine"]),
        ("0x10de", "0x020000", []),  # a network card
        ("0x1234", "0x030000", []),  # a virtual machine's screen
    ],
)
def test_idle_gpu_is_named(tmp_path: Path, vendor: str, kind: str, expected: list[str]) -> None:
    device = "sys/bus/pci/devices/0000:01:00.0"
    root = box(tmp_path, **{f"{device}/vendor": vendor, f"{device}/class": kind})
    notes = [note for note in detect(root=root).notes if "GPU" in note]
    assert len(notes) == len(expected)
    assert all(note.startswith(start) for note, start in zip(notes, expected, strict=True))


# ── engines and the real box ──


def test_engines_are_found_without_an_import() -> None:
    before = set(sys.modules)
    found = detect().engines
    assert {"llama_cpp", "torch", "lmdeploy"}.isdisjoint(set(sys.modules) - before)
    assert found.llamacpp is None or found.llamacpp[0].isdigit()


def test_absent_package_is_none_and_a_bare_module_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare_engine.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert hardware._version("no_such_engine", "no-such-engine") is None
    assert hardware._version("bare_engine", "bare-engine") == "unknown"


def test_this_box_is_detected() -> None:
    found = detect()
    assert 1 <= found.cpu.usable_cores <= found.cpu.physical_cores
    assert found.cpu.usable_cpus <= (os.cpu_count() or 1)
    assert 0 < found.memory.available_bytes <= found.memory.limit_bytes <= found.memory.total_bytes
