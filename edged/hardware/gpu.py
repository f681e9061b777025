"""A GPU, whoever found it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Gpu(Struct, frozen=True):
    """One GPU, as its driver describes it; sizes in bytes."""

    index: int
    name: str
    memory_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int] | None = None
    driver: str | None = None
    via: Literal["nvml", "vulkan"] = "nvml"
