"""Which adapters of a model can be used, and why the others cannot.

A bad adapter refuses itself, never its model.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from edged.config import Adapter, Source
from edged.config.values import format_bytes
from edged.errors import NotFetched, StoreError
from edged.protocol import AdapterFile, Kind
from edged.store.adapter import misfit, read_lora
from edged.store.gguf import GgufHeader, read_tensors
from edged.store.gguf_tensors import TensorInfo
from edged.store.source import resolve


class AdapterPlan(Struct, frozen=True):
    """What is to be done with one adapter. `file` is None exactly when `refusal` is set."""

    name: str
    scale: float = 1.0
    aliases: tuple[str, ...] = ()
    file: AdapterFile | None = None
    memory_bytes: int = 0
    refusal: str | None = None
    missing: Source | None = None  # its file is to be fetched


class AdapterChoice:
    """Decides about the adapters of one model, in their order, while there is memory."""

    def __init__(
        self,
        path: Path,
        header: GgufHeader,
        kind: Kind,
        *,
        beside: Path,
        store: Path | None = None,
        batch: int,
        offline: bool = False,
    ) -> None:
        """`path` and `header`: the model's file; `beside`: where relative paths begin.

        `store`: where fetched files are, `batch`: tokens of the largest decode, `offline`: nothing
        can be fetched.
        """
        self._path = path
        self._header = header
        self._kind = kind
        self._beside = beside
        self._store = store
        self._offline = offline
        self._batch = batch
        self._model: dict[str, TensorInfo] | None = None

    def plan(self, wanted: tuple[Adapter, ...], room_bytes: int) -> tuple[AdapterPlan, ...]:
        """Return a plan for each; together they take `room_bytes` at most. Raises OSError."""
        found = []
        for adapter in wanted:
            one = self._one(adapter, room_bytes)
            room_bytes -= one.memory_bytes
            found.append(one)
        return tuple(found)

    def _one(self, adapter: Adapter, room_bytes: int) -> AdapterPlan:
        plan = AdapterPlan(adapter.name, adapter.scale, adapter.aliases)
        assert adapter.gguf is not None
        if self._kind != "chat":
            return replace(plan, refusal="adapters are for chat models")
        try:
            file, n_bytes = self._read(adapter.name, adapter.gguf)
        except NotFetched as error:
            if self._offline:
                return replace(plan, refusal=f"{error.message}, and edged is offline")
            return replace(plan, refusal=error.message, missing=adapter.gguf)
        except StoreError as error:
            return replace(plan, refusal=error.message)
        if n_bytes > room_bytes:
            left = format_bytes(max(room_bytes, 0))
            needed = format_bytes(n_bytes)
            refusal = f"it needs {needed}, and {left} are left beside its model"
            return replace(plan, refusal=refusal)
        return replace(plan, file=file, memory_bytes=n_bytes)

    def _read(self, name: str, source: Source) -> tuple[AdapterFile, int]:
        path = resolve(source, self._beside, store=self._store)
        try:
            status = path.stat()
            lora = read_lora(path)
        except StoreError as error:
            raise StoreError(f"{path} {error.message}") from None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from None
        if self._model is None:
            self._model = read_tensors(self._path)
        why_not = misfit(lora, self._header.architecture, self._model)
        if why_not:
            raise StoreError(f"{path} {why_not}")
        file_id = f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
        memory_bytes = lora.weights_bytes + lora.scratch_bytes(self._batch)
        return AdapterFile(name, str(path), file_id), memory_bytes
