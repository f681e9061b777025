"""A source of `models.toml` → the file on this box.

`builtin:` files ship with the package, `file:` ones are the owner's; what the others mean stands in
the store's lock once they were fetched.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from edged.config import Source, Store
from edged.errors import NotFetched, StoreError
from edged.store import lock
from edged.store.lock import Locked

_BUILTIN = Path(__file__).parent / "builtin"
_SUFFIXES = {"gguf": ".gguf", "safetensors": ""}


def resolve(
    source: Source,
    beside: Path,
    form: Literal["gguf", "safetensors"] = "gguf",
    *,
    store: Path | None = None,
) -> Path:
    """Return the absolute path of a GGUF file, or of a folder of safetensors, that can be read.

    `beside` is the folder of models.toml, where relative paths begin; `store` that of fetched
    files. Raises NotFetched for what can be fetched, else StoreError; the message names the source
    and what to do.
    """
    if source.scheme not in ("builtin", "file"):
        path = _fetched(source, form, store)
    elif source.scheme == "builtin":
        path = _BUILTIN / f"{source.spec}{_SUFFIXES[form]}"
    else:
        path = Path(os.path.normpath(beside.absolute() / source.spec))
    try:
        status = path.stat()
        _check(path, status, form)
        with path.open("rb") if form == "gguf" else os.scandir(path):
            return path
    except FileNotFoundError:
        raise StoreError(_absent(source, path)) from None
    except PermissionError:
        raise StoreError(f"{path} may not be read: {_WHO}") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def _fetched(source: Source, form: Literal["gguf", "safetensors"], store: Path | None) -> Path:
    entry = lock.read(store).find(source, form) if store else None
    if entry is None or store is None or not is_whole(entry, store):
        raise NotFetched(f"{source} is not on this box: `edged pull` fetches it")
    main = store / entry.of_role("model")[0].path
    return main if form == "gguf" else main.parent


def is_offline(settings: Store) -> bool:
    """Tell whether the network must not be touched."""
    said = os.environ.get("HF_HUB_OFFLINE", "").lower()
    return settings.offline or said in ("1", "true", "yes", "on")


def is_whole(entry: Locked, store: Path) -> bool:
    """Tell whether every file of an entry is there, in its size."""

    def there(path: Path, n_bytes: int) -> bool:
        try:
            return path.stat().st_size == n_bytes
        except OSError:
            return False

    return all(there(store / file.path, file.bytes) for file in entry.files)


def projector_beside(source: Source, store: Path) -> Path | None:
    """Return the projector that was fetched beside a model.

    None where the lock cannot be read: that is the trouble of sources that need it.
    """
    try:
        entry = lock.read(store).find(source)
    except StoreError:
        return None
    found = entry.of_role("mmproj") if entry else []
    return store / found[0].path if found else None


_WHO = f"the daemon runs as user {os.geteuid()}"


def _check(path: Path, status: os.stat_result, form: str) -> None:
    if form == "safetensors":
        if not stat.S_ISDIR(status.st_mode):
            raise StoreError(f"{path} is not a folder of safetensors")
    elif stat.S_ISDIR(status.st_mode):
        inside = sorted(entry.name for entry in path.glob("*.gguf"))[:3]
        hint = f"; in it: {', '.join(inside)}" if inside else ""
        raise StoreError(f"{path} is a directory, not a GGUF file{hint}")
    elif not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path} is not a regular file")
    elif status.st_size == 0:
        raise StoreError(f"{path} is empty; copy or download it again")


def _absent(source: Source, path: Path) -> str:
    if source.scheme == "builtin":
        there = sorted(entry.stem for entry in _BUILTIN.glob("*.gguf"))
        return f"{source}: this package has no such model; it has {', '.join(there) or 'none'}"
    folder = path.parent
    if not folder.is_dir():
        return f"{path} does not exist, nor does the folder {folder}"
    return f"{path} does not exist"
