"""NVIDIA's driver, played for boxes that we do not have: what its C functions answer, behind
pynvml's names.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

GIB = 1 << 30
MIB = 1 << 20


class NvmlError(Exception):
    """What pynvml raises for a return code."""


class Device(NamedTuple):
    """What one GPU answers; sizes in bytes."""

    name: str
    total: int = 24 * GIB
    capability: tuple[int, int] = (8, 6)
    mig: tuple[int, int] | None = None  # current and pending; None: "Not Supported"
    used: int = 4 * GIB
    processes: tuple[tuple[int, int | None], ...] = ()  # pid, and bytes where they are told
    lost: bool = False  # it fell off the bus


def named(*names: str) -> list[Device]:
    """Return ordinary GPUs with these names; one that is called "lost" is."""
    return [Device(name, lost=name == "lost") for name in names]


class Nvml:
    """Stands for the module `pynvml` over a driver with these devices."""

    NVMLError = NvmlError

    def __init__(
        self, devices: list[Device], driver: str = "550.127.05", *, start: str = ""
    ) -> None:
        """`start`: why the driver does not start."""
        self.devices, self._driver, self._start = devices, driver, start
        self.closed = False

    def nvmlInit(self) -> None:  # noqa: N802
        if self._start:
            raise NvmlError(self._start)

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.closed = True

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return self._driver.encode()

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Device:  # noqa: N802
        return self.devices[index]

    def nvmlDeviceGetName(self, handle: Device) -> bytes:  # noqa: N802
        return handle.name.encode()

    def nvmlDeviceGetMemoryInfo(self, handle: Device) -> Any:  # noqa: N802
        _there(handle)
        free = handle.total - handle.used
        return SimpleNamespace(total=handle.total, free=free, used=handle.used)

    def nvmlDeviceGetCudaComputeCapability(self, handle: Device) -> tuple[int, int]:  # noqa: N802
        return handle.capability

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Device) -> list[Any]:  # noqa: N802
        _there(handle)
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in handle.processes]

    def nvmlDeviceGetMigMode(self, handle: Device) -> list[int]:  # noqa: N802
        if handle.mig is None:
            raise NvmlError("Not Supported")
        return list(handle.mig)


def _there(handle: Device) -> None:
    if handle.lost:
        raise NvmlError("GPU is lost")


def _idle(name: str, mib: int, capability: tuple[int, int]) -> Device:
    return Device(name, mib * MIB, capability, used=400 * MIB)


_T4 = _idle("Tesla T4", 15360, (7, 5))
_3060 = _idle("NVIDIA GeForce RTX 3060", 12288, (8, 6))
_3090 = _idle("NVIDIA GeForce RTX 3090", 24576, (8, 6))
_4090 = _idle("NVIDIA GeForce RTX 4090", 24564, (8, 9))
_H200 = _idle("NVIDIA H200", 143771, (9, 0))._replace(mig=(0, 0))
_1080 = _idle("NVIDIA GeForce GTX 1080", 8192, (6, 1))

#: None: libnvidia-ml is not there.
BOXES: dict[str, Nvml | None] = {
    "no driver": None,
    "GTX 1080": Nvml([_1080]),
    "T4": Nvml([_T4]),
    "3060": Nvml([_3060]),
    "2 x 3090": Nvml([_3090, _3090]),
    "4090": Nvml([_4090]),
    "H200": Nvml([_H200]),
    "MIG": Nvml([_H200._replace(mig=(1, 1))]),
    "old driver": Nvml([_3090], driver="470.223.02"),
}
