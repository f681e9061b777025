"""A folder of safetensors: what `config.json` and the headers say, without reading a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from edged.errors import StoreError

_MOST_HEADER_BYTES = 100 << 20  # the format's own limit
_MOST_CONFIG_BYTES = 16 << 20
_ALSO = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


class Weights(Struct, frozen=True):
    """One model. `config` is its `config.json`; sizes in bytes."""

    config: dict[str, Any]
    bytes: int  # of all tensors
    vision_bytes: int  # of those that only images need
    file_id: str  # another one when a file was replaced
    chat_template: bool
    tokenizer: bool  # tokenizer.json is there

    @property
    def architecture(self) -> str:
        """The class that the model was saved from, "" where its file names none."""
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else ""


def read_folder(folder: Path) -> Weights:
    """Return what the files say; raises StoreError without the folder's name, and OSError."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise StoreError("has no .safetensors file")
    _check_index(folder / "model.safetensors.index.json")
    total = vision = 0
    for path in files:
        for name, n_bytes in _tensors(path):
            total += n_bytes
            if _is_vision(name):
                vision += n_bytes
    present = [path for name in _ALSO if (path := folder / name).exists()]
    return Weights(
        config=_read_config(folder / "config.json"),
        bytes=total,
        vision_bytes=vision,
        file_id=_identity([*files, *present]),
        chat_template=_has_template(folder),
        tokenizer=(folder / "tokenizer.json").exists(),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise StoreError("has a config.json that is no model's: it is too large")
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise StoreError("has no config.json") from None
    except msgspec.MsgspecError as error:
        raise StoreError(f"has a config.json that cannot be read: {error}") from None


def _check_index(path: Path) -> None:
    try:
        said = msgspec.json.decode(path.read_bytes(), type=dict[str, Any]).get("weight_map")
    except FileNotFoundError:
        return
    except msgspec.MsgspecError as error:
        raise StoreError(f"has a damaged file, {path.name}: {error}") from None
    named = sorted(set(map(str, said.values()))) if isinstance(said, dict) else []
    missing = [name for name in named if not (path.parent / name).exists()]
    if missing:
        raise StoreError(f"lacks {missing[0]} ({len(missing)} of {len(named)} files of weights)")


def _tensors(path: Path) -> Iterator[tuple[str, int]]:
    """Yield name and size of each tensor (https://huggingface.co/docs/safetensors)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(_MOST_HEADER_BYTES, size - 8):
            raise StoreError(f"has a damaged file, {path.name}: its header does not fit into it")
        raw = file.read(length)
    try:
        header = msgspec.json.decode(raw, type=dict[str, dict[str, Any]])
        header.pop("__metadata__", None)
        spans = {name: tensor["data_offsets"] for name, tensor in header.items()}
        sizes = {name: int(end) - int(begin) for name, (begin, end) in spans.items()}
        needed = 8 + length + max((int(end) for _, end in spans.values()), default=0)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
        raise StoreError(f"has a damaged file, {path.name}: its header cannot be read") from None
    if needed != size:
        raise StoreError(f"has a truncated file, {path.name}: {size} bytes of {needed}")
    yield from sizes.items()


def _is_vision(name: str) -> bool:
    return any(part.startswith(("vision", "visual")) for part in name.split("."))


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    path = folder / "tokenizer_config.json"
    try:
        return bool(msgspec.json.decode(path.read_bytes(), type=dict[str, Any])["chat_template"])
    except (OSError, msgspec.MsgspecError, KeyError):
        return False


def _identity(files: list[Path]) -> str:
    found = [
        (path.name, status.st_size, status.st_mtime_ns) for path in files if (status := path.stat())
    ]
    return hashlib.sha256(msgspec.json.encode(found)).hexdigest()[:32]
