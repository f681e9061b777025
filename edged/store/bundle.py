"""A folder that carries models to a box without network: config, lock, weights, digests, licences.

models.toml  models.lock  SHA256SUMS (for `sha256sum -c`)  LICENCES.txt  hf/… ms/… https/…
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import msgspec

from edged.config import Config
from edged.errors import StoreError
from edged.store import gc, lock, verify
from edged.store.download import check_room
from edged.store.lock import Lock, Locked, LockedFile, make_folder, own
from edged.store.moving import bring
from edged.store.source import is_whole

SUMS = "SHA256SUMS"
LICENCES = "LICENCES.txt"

Tell = Callable[[LockedFile, int], None]


def write(config: Config, store: Path, folder: Path, tell: Tell) -> Lock:
    """Copy what `config` names and is here into `folder`; after a break, go on.

    Raises StoreError.
    """
    named = gc.named([config])
    known = (entry for entry in lock.read(store).sources if named.has(entry))
    entries = tuple(entry for entry in known if is_whole(entry, store))
    files = [file for entry in entries for file in entry.files]
    missing = sum(file.bytes for file in files if not (folder / file.path).exists())
    check_room(folder, missing, f"the export to {folder}")
    for file in files:
        bring(store / file.path, folder / file.path, file.sha256, lambda n, f=file: tell(f, n))  # type: ignore[misc]
    found = Lock(sources=entries)
    try:
        sums = "".join(f"{file.sha256}  {file.path}\n" for file in files)
        (folder / SUMS).write_text(sums)
        (folder / LICENCES).write_text("".join(_licence(entry) for entry in entries))
        (folder / "models.toml").write_bytes(Path(config.path).read_bytes())
        content = msgspec.json.format(msgspec.json.encode(found), indent=2)
        (folder / lock.NAME).write_bytes(content + b"\n")  # last: with it the folder is whole
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}") from None
    return found


def _licence(entry: Locked) -> str:
    files = "".join(f"    {file.path}\n" for file in entry.of_role("licence"))
    return f"{entry.source}: {entry.licence or 'not told by its hub'}\n{files}"


def take(folder: Path, store: Path, tell: Tell) -> Lock:
    """Take what `folder` carries into the store, every byte verified. Raises StoreError."""
    if not (folder / lock.NAME).exists():
        raise StoreError(
            f"{folder} has no {lock.NAME}: it was not written by `edged export`, or not to its end"
        )
    brought = lock.read(folder)
    files = [file for entry in brought.sources for file in entry.files]
    for file in files:
        if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts:
            raise StoreError(f"{folder / lock.NAME} names {file.path!r}, outside of the store")
    missing = sum(file.bytes for file in files if not (store / file.path).exists())
    check_room(store, missing, f"the import from {folder}")
    with lock.bringing(store):
        for entry in brought.sources:
            for file in entry.files:
                target = store / file.path
                make_folder(target.parent, store)
                bring(folder / file.path, target, file.sha256, lambda n, f=file: tell(f, n))  # type: ignore[misc]
                verify.check_header(target, file.path)
                own(target, store)
            lock.change(store, lambda now, entry=entry: now.having(entry))  # type: ignore[misc]
    return brought
