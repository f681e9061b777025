"""NVIDIA's GPUs as their driver describes them (NVML); no context is opened on any of them."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from typing import Any

from edged.hardware.gpu import Gpu

LIBRARY = "libnvidia-ml.so.1"


def load() -> Any:
    """Return pynvml if the driver's library is there, else None."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    return importlib.import_module("pynvml")


def gpus(nvml: Any, notes: list[str]) -> tuple[Gpu, ...]:
    """Ask NVML (the module `pynvml`, or one like it); whatever it cannot say becomes a note."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        # driver not loaded, library and kernel module of different versions, no permission …
        notes.append(f"NVML does not start: {error}; `nvidia-smi` says more")
        return ()
    try:
        driver = _string(nvml.nvmlSystemGetDriverVersion())
        found = [_gpu(nvml, n, driver, notes) for n in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        notes.append(f"NVML does not list the GPUs: {error}")
        return ()
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return tuple(gpu for gpu in found if gpu is not None)


def _gpu(nvml: Any, index: int, driver: str, notes: list[str]) -> Gpu | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = _string(nvml.nvmlDeviceGetName(handle))
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        capability = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError as error:  # fell off the bus, unified memory …
        notes.append(f"GPU {index} cannot be used: {error}")
        return None
    with contextlib.suppress(nvml.NVMLError):  # most GPUs know no MIG and say so
        if nvml.nvmlDeviceGetMigMode(handle)[0]:
            notes.append(f"GPU {index} ({name}) is split by MIG; only whole GPUs are used")
            return None
    return Gpu(
        index=index,
        name=name,
        memory_bytes=int(memory.total),
        free_bytes=int(memory.free),
        compute_capability=(int(capability[0]), int(capability[1])),
        driver=driver,
    )


def used_bytes(pid: int) -> int:
    """Return the memory that a process has on all GPUs, 0 where NVML does not tell."""
    return sum(used_by_gpu(pid).values())


def used_by_gpu(pid: int) -> dict[int, int]:
    """Return the memory that a process has on each GPU by its index; none where it has nothing."""
    nvml = load()
    if nvml is None:
        return {}
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return {}
    try:
        found = {n: _used_bytes(nvml, n, pid) for n in range(nvml.nvmlDeviceGetCount())}
    except nvml.NVMLError:
        return {}
    else:
        return {n: size for n, size in found.items() if size}
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _used_bytes(nvml: Any, index: int, pid: int) -> int:
    with contextlib.suppress(nvml.NVMLError):  # one that fell off the bus
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        # None: not told, in a container or under another driver model
        return sum(each.usedGpuMemory or 0 for each in running if each.pid == pid)
    return 0


def _string(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
