"""(Config, Hardware) → Plan: for each model the engine, files, memory and the reasons. Pure."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from edged.config import Config, Model
from edged.errors import ModelNotFound
from edged.hardware import Hardware
from edged.protocol import Launch


class MemoryEstimate(Struct, frozen=True):
    """Main memory that a worker will take, in bytes."""

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


class ModelPlan(Struct, frozen=True):
    """What is to be done with one model. `engine is None` exactly when `refusal` is set.

    `launch` is None when refused, and for an upstream, which has no worker.
    """

    model: Model
    engine: Literal["llamacpp", "lmdeploy", "upstream"] | None = None
    launch: Launch | None = None
    memory: MemoryEstimate | None = None
    reasons: tuple[str, ...] = ()
    refusal: str | None = None


class Plan(Struct, frozen=True):
    """All models. `names` maps every name and alias to its model's name."""

    config: Config
    hardware: Hardware
    models: dict[str, ModelPlan]
    names: dict[str, str]

    @property
    def budget_bytes(self) -> int:
        """Memory that all workers together may take."""
        reserve = self.config.hardware.reserve_memory_bytes
        return max(0, self.hardware.memory.limit_bytes - reserve)

    def resolve(self, name: str) -> ModelPlan:
        """Return the model that has this name or alias; raises ModelNotFound."""
        if name not in self.names:
            raise ModelNotFound(f"no model is called {name!r}", param="model")
        return self.models[self.names[name]]


class Diff(Struct, frozen=True):
    """How two plans differ, as model names in the order of the file.

    replaced: the launch differs (None on either side counts: a model that became refused, or is
    no longer). updated: only the rest differs. server: `[server]` differs.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    server: bool = False
