"""Models that other programs have fetched already: Ollama's store, Hugging Face's cache.

Files get a second name in our store where that is possible (one file system, one owner), else they
are copied. Both stores name a file by its SHA-256, which is checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, field

from edged.config import Source, hub_spec
from edged.errors import StoreError
from edged.store import lock, selection, verify
from edged.store.listing import RemoteFile
from edged.store.lock import Locked, LockedFile, Role, make_folder, own
from edged.store.moving import bring

Tell = Callable[[str, int], None]
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _take(
    store: Path, found: Path, path: str, *, sha256: str | None, role: Role, tell: Tell
) -> LockedFile:
    target = store / path
    make_folder(target.parent, store)
    digest = bring(found, target, sha256, lambda n: tell(path, n), link=True)
    try:
        verify.check_header(target, path)
    except StoreError:
        target.unlink()
        raise
    if target.stat().st_nlink == 1:
        own(target, store)
    return LockedFile(path, target.stat().st_size, digest, role)


# ── Ollama ──


class _Layer(Struct):
    media: str = field(name="mediaType")
    digest: str


class _Manifest(Struct):
    layers: list[_Layer] = []


_ROLES: dict[str, tuple[Role, str]] = {
    "application/vnd.ollama.image.model": ("model", "model.gguf"),
    "application/vnd.ollama.image.projector": ("mmproj", "mmproj.gguf"),
    "application/vnd.ollama.image.license": ("licence", "LICENSE"),
}


def ollama_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where Ollama keeps its models on this box; raises StoreError if nowhere."""
    given = environment.get("OLLAMA_MODELS")
    places = [Path(given)] if given else []
    places += [Path("~/.ollama/models").expanduser(), Path("/usr/share/ollama/.ollama/models")]
    for place in places:
        if (place / "manifests").is_dir():
            return place
    raise StoreError(f"no store of Ollama was found at {', '.join(map(str, places))}")


def from_ollama(folder: Path, store: Path, tell: Tell) -> Iterator[tuple[str, Locked]]:
    """Take every model of Ollama's; yield its name there, and what it has become here.

    Its source is the `file:` line that names it in models.toml. Raises StoreError.
    """
    for manifest in sorted((folder / "manifests").glob("*/*/*/*")):
        name = f"{manifest.parent.name}:{manifest.name}"
        try:
            layers = msgspec.json.decode(manifest.read_bytes(), type=_Manifest).layers
        except (OSError, msgspec.MsgspecError):
            continue
        files = []
        for layer in layers:
            digest = layer.digest.removeprefix("sha256:")
            if layer.media not in _ROLES or not _SHA256.fullmatch(digest):
                continue
            role, base = _ROLES[layer.media]
            path = f"ollama/{manifest.parent.name}/{manifest.name}/{base}"
            blob = folder / "blobs" / f"sha256-{digest}"
            files.append(_take(store, blob, path, sha256=digest, role=role, tell=tell))
        models = [file for file in files if file.role == "model"]
        if len(models) != 1:
            continue
        entry = Locked(
            source=f"file:{store / models[0].path}",
            form="gguf",
            revision="ollama",
            files=(*models, *(file for file in files if file.role != "model")),
            fetched_at=lock.now(),
        )
        lock.change(store, lambda now, entry=entry: now.having(entry))  # type: ignore[misc]
        yield name, entry


# ── Hugging Face's cache ──


def hf_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of Hugging Face's cache; it may not exist."""
    given = environment.get("HF_HUB_CACHE")
    home = environment.get("HF_HOME") or "~/.cache/huggingface"
    return Path(given or f"{home}/hub").expanduser()


def from_hf_cache(cache: Path, source: Source, store: Path, tell: Tell) -> Locked | None:
    """Take what a `hf:` source means in the cache; None: it is not there. Raises StoreError."""
    spec = hub_spec(source)
    repository = cache / f"models--{spec.repository.replace('/', '--')}"
    revision = _revision(repository, spec.revision or "main")
    snapshot = repository / "snapshots" / revision
    if not revision or not snapshot.is_dir():
        return None
    there = {
        str(path.relative_to(snapshot)): path for path in snapshot.rglob("*") if path.is_file()
    }
    files = tuple(
        RemoteFile(name, path.stat().st_size, "", _blob_digest(path))
        for name, path in there.items()
    )
    found = selection.candidates(files)
    if not found:
        return None
    wanted = None if spec.choice == "auto" and len(found) == 1 else spec.choice
    one = selection.choose(found, wanted, f"the cache's {spec.repository}")
    roles: list[tuple[RemoteFile, Role]] = [(file, "model") for file in one.files]
    if (beside := selection.projector(files, one)) is not None:
        roles.append((beside, "mmproj"))
    roles += [(file, "licence") for file in selection.licences(files)]
    folder = f"hf/{spec.repository}/{revision[:12]}"
    entry = Locked(
        source=str(source),
        form="gguf",
        revision=revision,
        files=tuple(
            _take(
                store,
                there[file.path],
                f"{folder}/{file.path}",
                sha256=file.sha256,
                role=role,
                tell=tell,
            )
            for file, role in roles
        ),
        chosen=one.tag,
        fetched_at=lock.now(),
    )
    lock.change(store, lambda now: now.having(entry))
    return entry


def _revision(repository: Path, name: str) -> str:
    try:
        return (repository / "refs" / name).read_text().strip()
    except OSError:
        return name if (repository / "snapshots" / name).is_dir() else ""


def _blob_digest(path: Path) -> str | None:
    """Return the SHA-256 that a large file's blob is named by."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None
