"""`models.lock`: what every source was resolved to, so that a restart never needs the network.

It lies in the folder of the model files. Written whole and atomically; processes that change it
take turns. What a line of `models.toml` means here stays until `edged pull --update`.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from edged import atomic
from edged.config import Source
from edged.errors import StoreError

NAME = "models.lock"
BRINGING = "bringing"  # held, shared, by whoever brings files here; alone by who removes some
_VERSION = 1

Form = Literal["gguf", "safetensors"]
Role = Literal["model", "mmproj", "licence"]


class LockedFile(Struct, frozen=True):
    """One file; `path` is relative to the store's folder."""

    path: str
    bytes: int
    sha256: str
    role: Role = "model"


class Locked(Struct, frozen=True):
    """What a source means. The first file of the role `model` is the one that is loaded."""

    source: str
    form: Form
    revision: str
    files: tuple[LockedFile, ...]
    chosen: str | None = None  # the quantisation
    why: str | None = None  # where edged chose it
    licence: str | None = None
    fetched_at: float = 0.0  # s since the epoch

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)

    def of_role(self, role: Role) -> list[LockedFile]:
        """Return the files that play this role."""
        return [file for file in self.files if file.role == role]


class Lock(Struct, frozen=True):
    """The whole file."""

    version: int = _VERSION
    sources: tuple[Locked, ...] = ()

    def find(self, source: Source | str, form: Form = "gguf") -> Locked | None:
        """Return what a source was resolved to."""
        key = str(source)
        return next((e for e in self.sources if e.source == key and e.form == form), None)

    def having(self, entry: Locked) -> Lock:
        """Return a lock in which `entry` stands instead of what its source meant before."""
        others = (e for e in self.sources if (e.source, e.form) != (entry.source, entry.form))
        return Lock(sources=tuple(sorted((*others, entry), key=lambda e: (e.source, e.form))))


def read(store: Path) -> Lock:
    """Return the lock of this store, an empty one where there is none; raises StoreError."""
    path = store / NAME
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Lock)
    except FileNotFoundError:
        return Lock()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise StoreError(
            f"{path} is damaged ({error}): move it away and run `edged pull`, which takes the "
            "files that are there"
        ) from None
    if found.version != _VERSION:
        raise StoreError(f"{path} was written by another edged: version {found.version}")
    return found


def files(store: Path) -> dict[str, LockedFile]:
    """Return every file of the lock by its whole path; none where the lock cannot be read."""
    try:
        status = (store / NAME).stat()
        return _files(store, status.st_mtime_ns, status.st_size, status.st_ino)
    except (OSError, StoreError):
        return {}


@functools.lru_cache(maxsize=1)
def _files(store: Path, _mtime_ns: int, _size: int, _inode: int) -> dict[str, LockedFile]:
    return {str(store / file.path): file for entry in read(store).sources for file in entry.files}


def change(store: Path, edit: Callable[[Lock], Lock]) -> Lock:
    """Rewrite the lock as `edit` says, alone among all processes; raises StoreError."""
    make_folder(store, store)
    with alone(store, NAME):
        new = edit(read(store))
        path = store / NAME
        data = msgspec.json.format(msgspec.json.encode(new), indent=2) + b"\n"
        try:
            atomic.write(path, data, owner=atomic.owner(store))
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}") from None
    return new


def now() -> float:
    """Return the time for `fetched_at`."""
    return round(time.time(), 3)


# ── a folder that several processes, and root, use ──


@contextlib.contextmanager
def alone(
    store: Path, what: str, waiting: Callable[[], None] = lambda: None, *, shared: bool = False
) -> Iterator[None]:
    """Hold `what` of this store; other processes wait, and say so once through `waiting`.

    `shared`: beside others that share it, while nobody is alone with it. The kernel lets go when
    the process dies, however it dies.
    """
    folder = store / ".locks"
    make_folder(folder, store)
    path = folder / f"{what.replace('/', '+')}.lock"
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        own(path, store)
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(handle, kind)
        yield
    finally:
        os.close(handle)


def bringing(store: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the store while files come that its lock does not name yet: none is garbage."""
    make_folder(store, store)
    return alone(store, BRINGING, shared=True)


def make_folder(folder: Path, store: Path) -> None:
    """Make a folder inside the store with the store's owner; raises StoreError."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        try:
            each.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"{each} cannot be made: {error.strerror}") from None
        own(each, store)


def own(path: Path, store: Path) -> None:
    """Give what root made to the user that the store belongs to, so that the daemon may go on."""
    if os.geteuid() == 0 and store.exists():
        os.chown(path, *atomic.owner(store))
