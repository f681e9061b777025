"""Boxes as NVML tells of them: the values that its C functions return, behind pynvml's names."""

from types import SimpleNamespace
from typing import Any, NamedTuple

GIB = 1 << 30
MIB = 1 << 20


class NvmlError(Exception):
    """What pynvml raises for a return code."""


class Device(NamedTuple):
    """What one GPU answers."""

    name: str
    total: int
    capability: tuple[int, int]
    mig: tuple[int, int] | None = None  # current and pending; None: "Not Supported"


class Nvml:
    """Stands for the module `pynvml` over a driver with these devices."""

    NVMLError = NvmlError

    def __init__(self, devices: list[Device], driver: str = "550.127.05") -> None:
        self._devices, self._driver = devices, driver

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return self._driver.encode()

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Device:  # noqa: N802
        return self._devices[index]

    def nvmlDeviceGetName(self, handle: Device) -> bytes:  # noqa: N802
        return handle.name.encode()

    def nvmlDeviceGetMemoryInfo(self, handle: Device) -> Any:  # noqa: N802
        return SimpleNamespace(total=handle.total, free=handle.total - 400 * MIB, used=400 * MIB)

    def nvmlDeviceGetCudaComputeCapability(self, handle: Device) -> tuple[int, int]:  # noqa: N802
        return handle.capability

    def nvmlDeviceGetMigMode(self, handle: Device) -> list[int]:  # noqa: N802
        if handle.mig is None:
            raise NvmlError("Not Supported")
        return list(handle.mig)


_T4 = Device("Tesla T4", 15360 * MIB, (7, 5))
_3060 = Device("NVIDIA GeForce RTX 3060", 12288 * MIB, (8, 6))
_3090 = Device("NVIDIA GeForce RTX 3090", 24576 * MIB, (8, 6))
_4090 = Device("NVIDIA GeForce RTX 4090", 24564 * MIB, (8, 9))
_H200 = Device("NVIDIA H200", 143771 * MIB, (9, 0), mig=(0, 0))
_1080 = Device("NVIDIA GeForce GTX 1080", 8192 * MIB, (6, 1))

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
