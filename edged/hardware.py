"""What the box has: CPU, memory and its limits, GPUs, installed engines. No GPU context is opened."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Cpu(Struct, frozen=True):
    """Processors. "Usable" counts what affinity and the cgroup's CPU quota leave to us."""

    model: str
    architecture: str
    physical_cores: int  # of the box
    usable_cores: int  # physical cores that we may use, at least 1
    usable_cpus: int  # hardware threads that we may use, at least 1
    flags: tuple[str, ...] = ()


class Memory(Struct, frozen=True):
    """Main memory in bytes. `limit_bytes` is the smaller of the RAM and every cgroup limit."""

    total_bytes: int
    limit_bytes: int
    available_bytes: int


class Gpu(Struct, frozen=True):
    """One GPU, as its driver describes it; sizes in bytes."""

    index: int
    name: str
    memory_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int] | None = None
    driver: str | None = None
    via: Literal["nvml", "vulkan"] = "nvml"


class Engines(Struct, frozen=True):
    """Installed engine versions; None: not installed."""

    llamacpp: str | None = None
    lmdeploy: str | None = None


class Hardware(Struct, frozen=True):
    """Everything detected. `notes` say in words what was absent or odd."""

    cpu: Cpu
    memory: Memory
    gpus: tuple[Gpu, ...] = ()
    engines: Engines = Engines()
    notes: tuple[str, ...] = ()
