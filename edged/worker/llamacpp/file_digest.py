"""What a model file is, in a few bytes: the same for a copy, another one for a changed file."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

_WHOLE_BYTES = 16 << 20  # from the beginning: metadata, vocabulary, the table of tensors
_STRIDE_BYTES = 1 << 20  # behind it a sample of every MiB: no tensor that matters is smaller
_SAMPLE_BYTES = 1 << 12
_DIGEST_BYTES = 16
_SPLIT = re.compile(r"(.*)-00001-of-(\d{5})\.gguf")


def file_digest(path: Path) -> str:
    """Return the digest of a model file, with all its parts if it was split.

    Reads the first 16 MiB, and a page of every MiB behind them: 0.4 % of a large file. Name, owner
    and times do not count. Raises OSError.
    """
    digest = hashlib.sha256()
    for part in _parts(path):
        with part.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(b"%d\n" % size)
            digest.update(file.read(_WHOLE_BYTES))
            for at in range(_WHOLE_BYTES, size, _STRIDE_BYTES):
                digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, at))
            if size > _WHOLE_BYTES:
                digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, size - _SAMPLE_BYTES))
    return digest.hexdigest()[: 2 * _DIGEST_BYTES]


def _parts(path: Path) -> list[Path]:
    """Return the files that llama.cpp loads for `path`."""
    split = _SPLIT.fullmatch(path.name)
    if split is None:
        return [path]
    stem, n = split[1], split[2]
    return [path.with_name(f"{stem}-{i:05}-of-{n}.gguf") for i in range(1, int(n) + 1)]
