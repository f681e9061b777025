"""Whether a file is what it should be: digests, and the headers of GGUF and safetensors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edged.errors import GgufError, StoreError
from edged.store.gguf import read_any

_PIECE_BYTES = 1 << 20
_MOST_HEADER_BYTES = 100 << 20  # safetensors' own limit


def digest(path: Path, tell: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of a file, telling how many bytes are read; raises OSError."""
    sha256 = hashlib.sha256()
    done = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            sha256.update(piece)
            done += len(piece)
            tell(done)
    return sha256.hexdigest()


def git_digest(path: Path) -> str:
    """Return git's name for the content of a file; raises OSError."""
    sha1 = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            sha1.update(piece)
    return sha1.hexdigest()


def check_header(path: Path, name: str) -> None:
    """Check that `path` holds what its `name` promises; raises StoreError."""
    try:
        if name.lower().endswith(".gguf"):
            read_any(path)
        elif name.lower().endswith(".safetensors"):
            _check_safetensors(path)
    except GgufError as error:
        raise StoreError(f"{name} {error.message}") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def _check_safetensors(path: Path) -> None:
    """Check the header against the size (https://huggingface.co/docs/safetensors)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(_MOST_HEADER_BYTES, size - 8):
            raise GgufError("is no safetensors file: its header does not fit into it")
        header = file.read(length)
    try:
        tensors = msgspec.json.decode(header, type=dict[str, dict[str, Any]])
        ends = [
            int(tensor["data_offsets"][1])
            for name, tensor in tensors.items()
            if name != "__metadata__"
        ]
    except (msgspec.MsgspecError, KeyError, TypeError, IndexError, ValueError):
        raise GgufError("is no safetensors file: its header cannot be read") from None
    if 8 + length + max(ends, default=0) != size:
        raise GgufError(
            f"is truncated: it has {size} bytes and needs {8 + length + max(ends, default=0)}"
        )


def free_bytes(folder: Path) -> int:
    """Return what may still be written where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
