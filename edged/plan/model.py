"""What is to be done with one model: the result that the choice fills in."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from edged.config import Config, Model, Source
from edged.hardware import Hardware
from edged.plan.adapters import AdapterPlan
from edged.plan.estimate import MemoryEstimate
from edged.plan.places import MAIN, gpu
from edged.protocol import AdapterFile, Kind, Launch
from edged.store.lock import Form
from edged.store.projector import Medium

_GIB = 1 << 30


class ModelFile(Struct, frozen=True):
    """What the header of a model's file says that people ask for."""

    path: str
    bytes: int
    quantisation: str
    trained_context: int | None
    chat_template: bool
    architecture: str


class ModelPlan(Struct, frozen=True):
    """What is to be done with one model. `engine is None` exactly when `refusal` is set.

    `launch` is None when refused, while its own files are missing, and for an upstream, which has
    no worker.
    """

    model: Model
    engine: Literal["llamacpp", "lmdeploy", "upstream"] | None = None
    launch: Launch | None = None
    memory: MemoryEstimate | None = None
    reasons: tuple[str, ...] = ()
    refusal: str | None = None
    adapters: tuple[AdapterPlan, ...] = ()  # in the order of the file; empty when refused
    missing: tuple[Source, ...] = ()  # to be fetched: its own files, or those of adapters
    file: ModelFile | None = None  # what it is made of, once it is there
    digests: dict[str, str] = {}  # by path: SHA-256 of those of its files whose lock knows it

    @property
    def is_fetching(self) -> bool:
        """True when it cannot run before its files are there."""
        return bool(self.missing) and self.launch is None

    def form_of(self, source: Source) -> Form:
        """Return in which form a source of this plan is fetched."""
        is_folder = self.engine == "lmdeploy" and source == self.model.safetensors
        return "safetensors" if is_folder else "gguf"

    @property
    def sizes(self) -> dict[str, int]:
        """What a worker takes where, as estimated."""
        own = self.launch.lmdeploy if self.launch else None
        on_gpus = {gpu(n): own.weights_bytes + own.cache_bytes for n in own.devices} if own else {}
        return {MAIN: self.memory.total_bytes if self.memory else 0, **on_gpus}

    @property
    def kind(self) -> Kind | None:
        """What it serves; None where no worker of ours does."""
        return self.launch.kind if self.launch else None

    @property
    def context(self) -> int:
        """Tokens of one request: what is in force, or else what the file asks for."""
        return self.launch.context if self.launch else self.model.context

    @property
    def media(self) -> tuple[Medium, ...]:
        """What it takes beside text."""
        launch = self.launch
        if launch is not None and launch.lmdeploy is not None and launch.lmdeploy.images:
            return ("image",)
        return launch.llamacpp.media if launch and launch.llamacpp else ()

    @property
    def files(self) -> tuple[AdapterFile, ...]:
        """The adapters that its worker is to have."""
        return tuple(adapter.file for adapter in self.adapters if adapter.file is not None)


def budget_bytes(config: Config, hardware: Hardware) -> int:
    """Return the memory that all workers together may take."""
    limit = hardware.memory.limit_bytes
    reserve = config.hardware.reserve_memory_bytes
    return max(0, limit - (min(_GIB, limit // 4) if reserve is None else reserve))
