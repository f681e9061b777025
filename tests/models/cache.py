"""The folder of built things: each is built once, appears whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


class UnavailableError(RuntimeError):
    """Something that cannot be built here; the message says in one line what is missing."""


def cache_dir() -> Path:
    """Return the cache folder, made if it is absent."""
    if chosen := os.environ.get("EDGED_TEST_CACHE"):
        path = Path(chosen)
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged-tests"
    path = path.absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return ``cache_dir()/name``; if it is absent, let ``build`` make it at a path beside it.

    ``name`` carries the version of its builder: a changed builder needs a new name. A lock file
    keeps parallel test processes from building the same thing twice.
    """
    path = cache_dir() / name
    if path.exists():
        return path
    with (path.parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return path
        unfinished = path.with_name(f".{name}.unfinished")
        _remove(unfinished)
        try:
            build(unfinished)
            unfinished.rename(path)
        finally:
            _remove(unfinished)
    return path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
