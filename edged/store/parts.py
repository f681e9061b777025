"""A model in several files: which ones, from the name of the first."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from edged.store.lock import LockedFile

_SPLIT = re.compile(r"(.*)-00001-of-(\d{5})\.gguf")


def of(path: Path) -> list[Path]:
    """Return the files that llama.cpp loads for `path`, in their order."""
    split = _SPLIT.fullmatch(path.name)
    if split is None:
        return [path]
    stem, n = split[1], split[2]
    return [path.with_name(f"{stem}-{i:05}-of-{n}.gguf") for i in range(1, int(n) + 1)]


def identity(path: Path) -> str:
    """Return what changes when one of the files is replaced by another; raises OSError."""
    found = [part.stat() for part in of(path)]
    size = sum(status.st_size for status in found)
    return f"{size}-{max(status.st_mtime_ns for status in found)}-{found[0].st_ino}"


def digest(path: Path, known: Mapping[str, LockedFile]) -> str | None:
    """Return the SHA-256 of a file, or of its parts' own, as `known` by path; None: not known.

    A file of another size than the lock says is not the one that was fetched. Raises OSError.
    """
    found = []
    for part in of(path):
        file = known.get(str(part))
        if file is None or file.bytes != part.stat().st_size:
            return None
        found.append(file.sha256)
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()
