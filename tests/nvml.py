"""A stand-in for NVIDIA's driver, for boxes that we do not have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

GIB = 1 << 30


class NvmlError(Exception):
    """What pynvml raises."""


class Nvml:
    """The functions of pynvml that detection calls, played for boxes that we do not have."""

    NVMLError = NvmlError

    def __init__(
        self,
        devices: list[Any],
        start: str = "",
        mig: bool = False,
        running: dict[Any, list[Any]] | None = None,
    ) -> None:
        self.devices, self.start, self.mig, self.closed = devices, start, mig, False
        self.running = running or {}

    def nvmlInit(self) -> None:  # noqa: N802
        if self.start:
            raise NvmlError(self.start)

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.closed = True

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"550.54.14"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        return self.devices[index]

    def nvmlDeviceGetName(self, handle: Any) -> str:  # noqa: N802
        return str(handle)

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:  # noqa: N802
        if handle == "lost":
            raise NvmlError("GPU is lost")
        return SimpleNamespace(total=24 * GIB, free=20 * GIB)

    def nvmlDeviceGetCudaComputeCapability(self, _handle: Any) -> tuple[int, int]:  # noqa: N802
        return (8, 6)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:  # noqa: N802
        if handle == "lost":
            raise NvmlError("GPU is lost")
        return self.running.get(handle, [])

    def nvmlDeviceGetMigMode(self, _handle: Any) -> list[int]:  # noqa: N802
        if not self.mig:
            raise NvmlError("Not Supported")
        return [1, 1]
