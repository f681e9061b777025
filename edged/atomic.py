"""Put a whole file in the place of an old one: whatever happens, one of the two is there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write(
    path: Path, data: bytes, *, mode: int = 0o644, owner: tuple[int, int] | None = None
) -> None:
    """Write `path` anew, through to the disk; raises OSError, and then the old file is untouched.

    Nobody ever sees half a file, nor one with more rights than `mode`. `owner`: user and group
    that root gives it to; others cannot give files away. Writers of one path have to take turns.
    """
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)  # of a writer that died
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            if owner is not None and os.geteuid() == 0:
                os.fchown(handle, *owner)
            os.fchmod(handle, mode)
            file.write(data)
            file.flush()
            os.fsync(handle)
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    sync(path.parent)


def owner(path: Path) -> tuple[int, int]:
    """Return the user and the group of what is there; raises OSError."""
    found = path.stat()
    return found.st_uid, found.st_gid


def sync(folder: Path) -> None:
    """Make renames in `folder` survive a power loss; raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
