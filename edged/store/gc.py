"""What of the store no configuration names any more, and its removal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from edged.config import Config, Source
from edged.errors import StoreError
from edged.store import lock
from edged.store.lock import Locked

_UNFINISHED = (".part", ".part.json", ".part.json.new")


class Garbage(Struct, frozen=True):
    """What nobody names: entries of the lock, and files below the store with their sizes."""

    entries: tuple[Locked, ...]
    files: tuple[tuple[Path, int], ...]

    @property
    def bytes(self) -> int:
        """Space that comes back; a file with a second name elsewhere counts all the same."""
        return sum(n_bytes for _, n_bytes in self.files)


def named(configs: Iterable[Config]) -> set[str]:
    """Return every source that these configurations name, as the lock writes them."""
    found: set[Source | None] = set()
    for config in configs:
        for model in config.models.values():
            options = model.llamacpp
            found |= {model.gguf, model.safetensors, options.mmproj, options.draft}
            found |= {adapter.gguf for adapter in options.lora}
    return {str(source) for source in found if source is not None}


def garbage(store: Path, sources: set[str]) -> Garbage:
    """Return what is not of these sources; unfinished downloads of them stay. Raises StoreError."""
    known = lock.read(store)
    kept = [entry for entry in known.sources if entry.source in sources]
    gone = [entry for entry in known.sources if entry.source not in sources]
    keep = {store / file.path for entry in kept for file in entry.files}
    # a file that edged made lies in the store and is named like any other of the owner's
    keep |= {Path(source.removeprefix("file:")) for source in sources if source.startswith("file:")}
    homes = {_home(source) for source in sources}
    files = []
    for path in sorted(store.rglob("*")):
        inside = path.relative_to(store)
        if inside.parts[0] == ".locks" or not path.is_file() or path.is_symlink():
            continue
        if path in keep or inside.name in (lock.NAME, f".{lock.NAME}.new"):
            continue
        if path.name.endswith(_UNFINISHED) and any(str(inside).startswith(h) for h in homes):
            continue
        files.append((path, path.stat().st_size))
    return Garbage(tuple(gone), tuple(files))


def _home(source: str) -> str:
    """Return where the files of a source go: `hf/ORG/REPO/`, `https/HOST/`."""
    scheme, _, spec = source.partition(":")
    if scheme == "https":
        return f"https/{urlsplit(source).hostname}/"
    return f"{scheme}/{spec.partition('@')[0].partition(':')[0]}/"


def remove(store: Path, found: Garbage) -> None:
    """Remove it: first from the lock, so that nothing names a file that is gone."""
    gone = {(entry.source, entry.form) for entry in found.entries}
    lock.change(
        store,
        lambda now: lock.Lock(
            sources=tuple(e for e in now.sources if (e.source, e.form) not in gone)
        ),
    )
    for path, _ in found.files:
        try:
            path.unlink(missing_ok=True)
            folder = path.parent
            while folder != store and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent
        except OSError as error:
            raise StoreError(f"{path} cannot be removed: {error.strerror}") from None
