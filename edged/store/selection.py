"""Which files of a repository a source means: pure, on names and sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from edged.errors import StoreError
from edged.store.listing import RemoteFile

GGUF = ("*.gguf", "license*", "licence*")
SAFETENSORS = (
    "*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model",
    "*.tiktoken", "merges.txt", "vocab.txt", "license*", "licence*",
)  # fmt: skip

_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_TAG = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_[A-Z]+)*|NVFP4|BF16|FP?16|FP?32))$",
    re.IGNORECASE,
)
# What a source without a tag means, the first that there is.
_USUAL = ("Q4_K_M", "UD-Q4_K_XL", "Q4_K_S", "Q4_0", "Q5_K_M", "Q8_0", "MXFP4")
_PROJECTOR_TYPES = ("F16", "BF16", "Q8_0", "F32")
_MOST_LICENCE_BYTES = 1 << 20


class Candidate(Struct, frozen=True):
    """One model of a repository: its files in order of their parts, the first is loaded."""

    tag: str  # the quantisation, else the name
    files: tuple[RemoteFile, ...]

    @property
    def bytes(self) -> int:
        """Size of all parts."""
        return sum(file.bytes or 0 for file in self.files)


def candidates(files: tuple[RemoteFile, ...]) -> list[Candidate]:
    """Return the GGUF models among `files`, the largest first. An incomplete split is left out."""
    whole: dict[str, dict[int, RemoteFile]] = {}
    parts: dict[str, int] = {}
    for file in files:
        if not file.path.lower().endswith(".gguf") or is_projector(file.path):
            continue
        stem = file.path[: -len(".gguf")]
        part = _PART.search(stem)
        if "imatrix" in stem.lower():
            continue
        key = stem[: part.start()] if part else stem
        parts[key] = int(part[2]) if part else 1
        whole.setdefault(key, {})[int(part[1]) if part else 1] = file
    found = [
        Candidate(tag_of(stem), tuple(by_number[n] for n in sorted(by_number)))
        for stem, by_number in whole.items()
        if sorted(by_number) == list(range(1, parts[stem] + 1))
    ]
    return sorted(found, key=lambda each: (-each.bytes, each.files[0].path))


def tag_of(stem: str) -> str:
    """Return the quantisation that a file's name ends with, else the name itself."""
    name = stem.rpartition("/")[2]
    tag = _TAG.search(name)
    return tag[1].upper().replace("FP", "F") if tag else name


def is_projector(path: str) -> bool:
    """Tell by its name whether a file is an image or audio projector."""
    return "mmproj" in path.rpartition("/")[2].lower()


def choose(found: list[Candidate], wanted: str | None, repository: str) -> Candidate:
    """Return the one that `wanted` means: a quantisation, a file's name, or None for the usual.

    Raises StoreError that lists what exists.
    """
    if not found:
        raise StoreError(
            f"{repository} has no GGUF files: look for a repository of the same model whose name "
            "ends in -GGUF"
        )
    if wanted is None:
        for tag in _USUAL:
            usual = [each for each in found if each.tag == tag]
            if len(usual) == 1:
                return usual[0]
        if len(found) == 1:
            return found[0]
        raise StoreError(f"{repository} has several models; name one: {_listed(found)}")
    same = [each for each in found if _is_meant(each, wanted.lower())]
    if len(same) == 1:
        return same[0]
    if same:
        names = ", ".join(each.files[0].path for each in same[:8])
        raise StoreError(f"{repository} has several files for {wanted}; name one: {names}")
    raise StoreError(f"{repository} has no {wanted}; it has {_listed(found)}")


def _is_meant(candidate: Candidate, wanted: str) -> bool:
    path = candidate.files[0].path.lower()
    name = path.rpartition("/")[2]
    stem = _PART.sub("", name.removesuffix(".gguf"))
    return wanted in (candidate.tag.lower(), path, name, name.removesuffix(".gguf"), stem)


def _listed(found: list[Candidate]) -> str:
    tags = [each.tag for each in found]
    names = [
        each.tag if tags.count(each.tag) == 1 else each.files[0].path.rpartition("/")[2]
        for each in found
    ]
    shown = ", ".join(names[:40])
    return f"{shown} and {len(names) - 40} more" if len(names) > 40 else shown  # noqa: PLR2004


def projector(files: tuple[RemoteFile, ...], beside: Candidate) -> RemoteFile | None:
    """Return the projector that lies beside a model, in its folder or at the root."""
    folder = beside.files[0].path.rpartition("/")[0]
    near = [
        file
        for file in files
        if is_projector(file.path)
        and file.path.lower().endswith(".gguf")
        and file.path.rpartition("/")[0] in (folder, "")
    ]

    def rank(file: RemoteFile) -> tuple[int, str]:
        tag = tag_of(file.path[: -len(".gguf")])
        known = _PROJECTOR_TYPES.index(tag) if tag in _PROJECTOR_TYPES else len(_PROJECTOR_TYPES)
        return known, file.path

    return min(near, key=rank, default=None)


def licences(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Return the files that hold the terms."""
    return [
        file
        for file in files
        if file.path.lower().startswith(("license", "licence"))
        and (file.bytes or 0) <= _MOST_LICENCE_BYTES
    ]


def whole_model(files: tuple[RemoteFile, ...], repository: str) -> list[RemoteFile]:
    """Return the files of a safetensors model; weights in subfolders are other variants."""
    found = [file for file in files if "/" not in file.path]
    if not any(file.path.endswith(".safetensors") for file in found):
        raise StoreError(f"{repository} has no safetensors; a GGUF repository belongs to gguf = …")
    return sorted(found, key=lambda file: file.path)
