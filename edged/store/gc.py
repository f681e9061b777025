"""What of the store no configuration names any more, and its removal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from edged.config import Config
from edged.errors import StoreError
from edged.store import lock, parts
from edged.store.lock import Form, Locked

_UNFINISHED = (".part", ".part.json", ".part.json.new")  # atomic.py writes the last


class Garbage(Struct, frozen=True):
    """What nobody names: entries of the lock, and files below the store with their sizes."""

    entries: tuple[Locked, ...]
    files: tuple[tuple[Path, int], ...]

    @property
    def bytes(self) -> int:
        """Space that comes back; a file with a second name elsewhere counts all the same."""
        return sum(n_bytes for _, n_bytes in self.files)


class Named(Struct, frozen=True):
    """What configurations name: sources as the lock writes them, and files of the owner's."""

    sources: frozenset[tuple[str, Form]]
    files: frozenset[Path]

    def has(self, entry: Locked) -> bool:
        """Tell whether an entry of the lock is named, in its form."""
        return (entry.source, entry.form) in self.sources


def named(configs: Iterable[Config]) -> Named:
    """Return what is named by any of these configurations."""
    sources: set[tuple[str, Form]] = set()
    files: set[Path] = set()
    for config in configs:
        beside = Path(config.path).parent
        for source, form in (each for model in config.models.values() for each in model.sources):
            sources.add((str(source), form))
            if source.scheme == "file":
                files |= _of_file(Path(os.path.normpath(beside / source.spec)))
    return Named(frozenset(sources), frozenset(files))


def _of_file(path: Path) -> set[Path]:
    """Return what llama.cpp or LMDeploy reads for a path: a folder, or all parts of a split."""
    found = {path, path.resolve()}
    for part in parts.of(path):
        found |= {part, part.resolve()}
    return found


def garbage(store: Path, kept: Named) -> Garbage:
    """Return what is not named; what is unfinished of named sources stays. Raises StoreError."""
    known = lock.read(store)
    entries = [entry for entry in known.sources if kept.has(entry)]
    gone = [entry for entry in known.sources if not kept.has(entry)]
    keep = kept.files | {store / file.path for entry in entries for file in entry.files}
    homes = tuple({_home(source) for source, _ in kept.sources})
    there = [path for path in sorted(store.rglob("*")) if _is_ours(path, store)]
    # a model of several files is on its way where one of them is
    coming = {
        path.parent
        for path in there
        if path.name.endswith(_UNFINISHED) and str(path.relative_to(store)).startswith(homes)
    }
    files = [
        (path, path.stat().st_size)
        for path in there
        if path.parent not in coming and keep.isdisjoint({path, path.resolve(), path.parent})
    ]
    return Garbage(tuple(gone), tuple(files))


def _is_ours(path: Path, store: Path) -> bool:
    """Tell whether a path may be garbage at all."""
    inside = path.relative_to(store)
    if inside.parts[0] == ".locks" or inside.name in (lock.NAME, f".{lock.NAME}.new"):
        return False
    return path.is_file() and not path.is_symlink()


def _home(source: str) -> str:
    """Return where the files of a source go: `hf/ORG/REPO/`, `https/HOST/`."""
    scheme, _, spec = source.partition(":")
    if scheme == "https":
        return f"https/{urlsplit(source).hostname}/"
    return f"{scheme}/{spec.partition('@')[0].partition(':')[0]}/"


def remove(store: Path, found: Garbage, kept: Named, waiting: Callable[[], None]) -> Garbage:
    """Remove what was found and still is garbage, and return it; raises StoreError.

    Meanwhile nothing is brought into the store: what was found may have been taken into use since.
    The lock goes first, so that nothing names a file that is gone.
    """
    with lock.alone(store, lock.BRINGING, waiting):
        now = garbage(store, kept)
        files = tuple(each for each in now.files if each in found.files)
        entries = tuple(each for each in now.entries if each in found.entries)
        lock.change(
            store,
            lambda old: lock.Lock(sources=tuple(e for e in old.sources if e not in entries)),
        )
        for path, _ in files:
            try:
                path.unlink(missing_ok=True)
                folder = path.parent
                while folder != store and not any(folder.iterdir()):
                    folder.rmdir()
                    folder = folder.parent
            except OSError as error:
                raise StoreError(f"{path} cannot be removed: {error.strerror}") from None
    return Garbage(entries, files)
