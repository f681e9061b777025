"""What the box has: CPU, memory and limits, GPUs, installed engines. No GPU context is opened.

Everything is read from files and from NVML; what is absent or odd becomes a note in words, never
an error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import os
import platform
from pathlib import Path

from msgspec import Struct

from edged.config import HardwareOverrides
from edged.hardware import cuda, nvml
from edged.hardware.cgroup import Limits, read_limits
from edged.hardware.gpu import Gpu
from edged.store import folders


class Cpu(Struct, frozen=True):
    """Processors. "Usable" counts what affinity and the cgroup's CPU quota leave to us."""

    model: str
    architecture: str
    physical_cores: int  # of the box
    usable_cores: int  # physical cores that we may use, at least 1
    usable_cpus: int  # hardware threads that we may use, at least 1
    flags: tuple[str, ...] = ()  # those that decide how fast a CPU computes


class Memory(Struct, frozen=True):
    """Main memory in bytes. `limit_bytes` is the smaller of the RAM and every cgroup limit."""

    total_bytes: int
    limit_bytes: int
    available_bytes: int


class Engines(Struct, frozen=True):
    """Installed engine versions; None: not installed."""

    llamacpp: str | None = None
    lmdeploy: str | None = None
    lmdeploy_python: str | None = None  # of the environment that has it


class Hardware(Struct, frozen=True):
    """Everything detected. `notes` say in words what was absent or odd."""

    cpu: Cpu
    memory: Memory
    gpus: tuple[Gpu, ...] = ()
    engines: Engines = Engines()
    notes: tuple[str, ...] = ()


def detect(overrides: HardwareOverrides | None = None, root: Path = Path("/")) -> Hardware:
    """Look at the box, in milliseconds; raises nothing. `root` holds the proc and sys to read."""
    limits = read_limits(root)
    notes: list[str] = []
    return Hardware(
        cpu=_cpu(root, os.sched_getaffinity(0), limits, notes),
        memory=_memory(root, limits, notes),
        gpus=_gpus(root, overrides or HardwareOverrides(), notes),
        engines=_engines(notes),
        notes=tuple(notes),
    )


# ── CPU ──

_TELLING_FLAGS = ("sse4", "avx", "amx", "fma", "f16c", "bmi2", "asimd", "sve", "i8mm", "bf16")


def _cpu(root: Path, affinity: set[int], limits: Limits, notes: list[str]) -> Cpu:
    info = _cpuinfo(root)
    cores = _cores(root, info)
    allowed = affinity & cores.keys() or set(cores)
    usable_cores = len({cores[cpu] for cpu in allowed})
    usable_cpus = len(allowed)
    if len(allowed) < len(cores):
        notes.append(f"CPU affinity leaves {len(allowed)} of {len(cores)} hardware threads")
    if limits.cpus is not None and limits.cpus < usable_cpus:
        notes.append(f"the control group allows {limits.cpus:g} CPUs of {usable_cpus}")
        usable_cpus = max(1, math.ceil(limits.cpus))
        # whole cores only: a thread that is throttled half of the time stalls all at the barrier
        usable_cores = max(1, min(usable_cores, math.floor(limits.cpus)))
    first = info.get(min(info), {}) if info else {}
    model = next((first[key] for key in ("model name", "Model", "cpu model") if key in first), "")
    flags = (first.get("flags") or first.get("Features") or "").split()
    return Cpu(
        model=model or _text(root / "proc/device-tree/model") or platform.machine(),
        architecture=platform.machine(),
        physical_cores=len(set(cores.values())),
        usable_cores=usable_cores,
        usable_cpus=usable_cpus,
        flags=tuple(sorted(flag for flag in flags if flag.startswith(_TELLING_FLAGS))),
    )


def _cpuinfo(root: Path) -> dict[int, dict[str, str]]:
    """Return the fields of /proc/cpuinfo by CPU number."""
    found: dict[int, dict[str, str]] = {}
    for block in _text(root / "proc/cpuinfo").split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        if fields.get("processor", "").isdecimal():
            found[int(fields["processor"])] = fields
    return found


def _cores(root: Path, info: dict[int, dict[str, str]]) -> dict[int, str]:
    """Return the physical core of each online CPU, as a name that its siblings share."""
    cores: dict[int, str] = {}
    for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*"):
        siblings = _text(folder / "topology/core_cpus_list")
        siblings = siblings or _text(folder / "topology/thread_siblings_list")
        if siblings:  # absent for a CPU that is offline
            cores[int(folder.name.removeprefix("cpu"))] = siblings
    if not cores:
        for cpu, fields in info.items():
            core = fields.get("core id")
            cores[cpu] = f"{fields.get('physical id')}/{core}" if core else str(cpu)
    return cores or {cpu: str(cpu) for cpu in os.sched_getaffinity(0)}


# ── memory ──


def _memory(root: Path, limits: Limits, notes: list[str]) -> Memory:
    kib: dict[str, int] = {}
    for line in _text(root / "proc/meminfo").splitlines():
        words = line.split()
        if len(words) > 1 and words[1].isdecimal():
            kib[words[0].rstrip(":")] = int(words[1])
    total = kib.get("MemTotal", 0) << 10
    if not total:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        notes.append("/proc/meminfo cannot be read: all memory is taken as available")
    available = kib["MemAvailable"] << 10 if "MemAvailable" in kib else total
    limit = total
    if limits.memory_bytes is not None and limits.memory_bytes < total:
        limit = limits.memory_bytes
        notes.append(f"the control group allows {limit >> 20} MiB of {total >> 20} MiB memory")
    left = limit if limits.memory_left_bytes is None else limits.memory_left_bytes
    return Memory(total_bytes=total, limit_bytes=limit, available_bytes=min(available, left, limit))


# ── GPUs ──

_PCI_DISPLAY = "0x03"
_PCI_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}


def _gpus(root: Path, overrides: HardwareOverrides, notes: list[str]) -> tuple[Gpu, ...]:
    if overrides.gpus == "none":
        notes.append('GPUs are not looked at: hardware.gpus = "none"')
        return ()
    library = nvml.load()
    found = nvml.gpus(library, notes) if library else ()
    if not found:
        notes.extend(_idle_gpus(root, nvml_is_there=library is not None))
    if overrides.gpus == "auto":
        return found
    absent = set(overrides.gpus) - {gpu.index for gpu in found}
    notes += [f"GPU {n} of hardware.gpus does not exist or cannot be used" for n in sorted(absent)]
    return tuple(gpu for gpu in found if gpu.index in overrides.gpus)


def _idle_gpus(root: Path, *, nvml_is_there: bool) -> list[str]:
    """Say which display adapters of the PCI bus go unused, and why."""
    notes = []
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        vendor = _PCI_VENDORS.get(_text(device / "vendor"))
        if not vendor or not _text(device / "class").startswith(_PCI_DISPLAY):
            continue
        if vendor == "NVIDIA" and not nvml_is_there:
            why = f"its driver is not installed ({nvml.LIBRARY} is missing)"
        elif vendor == "NVIDIA":
            why = "its driver does not answer"
        else:
            why = "no engine of this version computes on it"
        notes.append(f"the {vendor} GPU at {device.name} is not used: {why}")
    return notes


# ── engines ──

_SERVICE_STATE = Path("/var/lib/edged")  # for the commands of the box's owner


def _engines(notes: list[str]) -> Engines:
    importlib.invalidate_caches()  # installed while we run
    found = cuda.find((folders.state(), _SERVICE_STATE))
    if found is not None and found.problem is not None:
        notes.append(f"LMDeploy cannot be used: {found.problem}")
    is_usable = found is not None and found.problem is None and found.stamp is not None
    return Engines(
        llamacpp=_version("llama_cpp", "llama-cpp-python"),
        lmdeploy=found.stamp.lmdeploy if found and found.stamp and is_usable else None,
        lmdeploy_python=found.python if found and is_usable else None,
    )


def _version(module: str, distribution: str) -> str | None:
    """Return the version of a package without importing it."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
