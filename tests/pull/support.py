"""Configurations, models and pulls for tests against the hub on loopback."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

from edged import config
from edged.config import Config, Source
from edged.hardware import Cpu, Engines, Hardware, Memory
from edged.pull.auto import picker
from edged.pull.progress import Progress
from edged.pull.pulling import Pull
from edged.store.lock import Form, Locked
from tests.unit.gguf_bytes import MODEL, TENSORS, gguf

REPOSITORY = "Org/Model-GGUF"


def weights(tag: str = "Q4_K_M", kib: int = 64) -> bytes:
    """Return a GGUF whose tensor data is noise of about this size, the same for the same tag."""
    rows = kib * 4
    tensors = [*TENSORS, ("blk.0.noise.weight", (64, rows), 0)]
    head = gguf({**MODEL, "general.name": tag}, tensors, data=False)
    return head + random.Random(tag).randbytes(sum(_bytes(shape) for _, shape, _ in tensors))


def _bytes(shape: tuple[int, ...]) -> int:
    n = 4
    for each in shape:
        n *= each
    return n


def configuration(folder: Path, gguf_source: str, more: str = "", store: str = "") -> Config:
    text = f'[store]\nfolder = "{folder}/store"\n{store}\n'
    text += f'[models.m]\ngguf = "{gguf_source}"\n{more}'
    return config.parse(text.encode(), folder / "models.toml")


def box(gib: float = 8) -> Hardware:
    memory = int(gib * (1 << 30))
    return Hardware(
        cpu=Cpu(
            model="test", architecture="x86_64", physical_cores=2, usable_cores=2, usable_cpus=2
        ),
        memory=Memory(total_bytes=memory, limit_bytes=memory, available_bytes=memory),
        engines=Engines(llamacpp="test"),
    )


class Told:
    """Everything that a pull told."""

    def __init__(self) -> None:
        self.all: list[Progress] = []

    def __call__(self, progress: Progress) -> None:
        self.all.append(progress)


def pull(
    loaded: Config,
    *,
    tell: Callable[[Progress], None] = lambda _: None,
    gib: float = 8,
    waits: list[float] | None = None,
    form: Form = "gguf",
) -> Locked:
    """Fetch the model's source; `waits` gets what it would have slept."""
    slept = waits if waits is not None else []
    model = loaded.models["m"]
    source = model.gguf if form == "gguf" else model.safetensors
    assert isinstance(source, Source)
    with Pull(loaded, picker(loaded, lambda: box(gib)), tell, slept.append) as pulling:
        return pulling.fetch(pulling.resolve(source, "m", form))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
