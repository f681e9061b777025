"""A model in several files: which ones, from the name of the first."""

from __future__ import annotations

import re
from pathlib import Path

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
