"""A file of this box to another place on it: linked or copied, resumed, verified."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from edged import atomic
from edged.errors import StoreError
from edged.store import verify

_PIECE_BYTES = 1 << 20


def bring(
    source: Path,
    target: Path,
    sha256: str | None,
    tell: Callable[[int], None] = lambda _: None,
    *,
    link: bool = False,
) -> str:
    """Have the content of `source` at `target` and return its SHA-256.

    `sha256`: what it must be; `link`: a second name for the same file is as good. A copy that broke
    off goes on from its end. Raises StoreError: nothing that differs is ever at `target`.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            there = verify.digest(target, tell)
            if sha256 is None or there == sha256:
                return there
            target.unlink()
        if link and (linked := _linked(source, target, sha256, tell)) is not None:
            return linked
        return _copied(source, target, sha256, tell)
    except FileNotFoundError as error:
        raise StoreError(f"{error.filename or source} is missing") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"the disk of {target.parent} is full; the same command goes on once there is room"
            ) from None
        raise StoreError(f"{source} cannot be brought to {target}: {error.strerror}") from None


def _linked(
    source: Path, target: Path, sha256: str | None, tell: Callable[[int], None]
) -> str | None:
    found = verify.digest(source, tell)
    if sha256 is not None and found != sha256:
        raise _differs(source, found, sha256)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or another owner
        return None
    return found


def _copied(source: Path, target: Path, sha256: str | None, tell: Callable[[int], None]) -> str:
    part = target.with_name(f"{target.name}.part")
    resumed = part.exists()
    found = _append(source, part, tell)
    if sha256 is not None and found != sha256 and resumed:
        part.unlink()
        found = _append(source, part, tell)
    if sha256 is not None and found != sha256:
        part.unlink()
        raise _differs(source, found, sha256)
    part.replace(target)
    atomic.sync(target.parent)
    return found


def _append(source: Path, part: Path, tell: Callable[[int], None]) -> str:
    """Copy what `part` has not yet, and return the digest of all of it."""
    sha256 = hashlib.sha256()
    with source.open("rb", buffering=0) as file, part.open("a+b", buffering=0) as out:
        out.truncate(min(out.tell(), os.fstat(file.fileno()).st_size))
        out.seek(0)
        while piece := out.read(_PIECE_BYTES):
            sha256.update(piece)
        file.seek(out.tell())
        while piece := file.read(_PIECE_BYTES):
            out.write(piece)
            sha256.update(piece)
            tell(out.tell())
        os.fsync(out.fileno())
    return sha256.hexdigest()


def _differs(source: Path, found: str, wanted: str) -> StoreError:
    return StoreError(
        f"{source} is damaged: its SHA-256 is {found} instead of {wanted}. Nothing of it was "
        "taken; copy it again from where it came"
    )
