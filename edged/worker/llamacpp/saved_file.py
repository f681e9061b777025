"""The file of one saved prefix: a head, a header in msgpack, the state as llama.cpp gave it.

Head and state carry checksums (CRC-32). A file is written under another name and renamed, so that
it is whole or not there; what a power cut tears all the same is found by length and checksum.
Owner-only: its tokens are what somebody wrote.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import mmap
import os
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from edged.worker.llamacpp.sequence import Sequence, Span

FORMAT = 1
SUFFIX = ".kv"
TEMPORARY = ".tmp"
_MAGIC = b"edgedKV%c" % FORMAT
_HEAD_BYTES = len(_MAGIC) + 8  # magic, length and checksum of the header
_MOST_HEADER_BYTES = 64 << 20
_READ_ONLY = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_ANY_CHECKSUM = 1 << 32  # above every CRC-32, so that all of them take the same space


class _Header(Struct, frozen=True):
    key: str
    group: str
    tokens: bytes  # int32, little-endian; 0 in the place of an image or sound
    spans: list[tuple[int, int, int, bool, str]]  # as `Span`; then its first place's number, in hex
    n_bytes: int
    checksum: int  # of the state, and _ANY_CHECKSUM
    uses: int


@dataclass(frozen=True, eq=False, slots=True)
class SavedPrefix:
    """One file, as its header describes it."""

    path: Path
    group: str
    tokens: list[int]
    spans: tuple[Span, ...]
    n_bytes: int  # of the state
    offset: int  # where it begins
    checksum: int
    uses: int


def name_of(sequence: Sequence) -> str:
    """Return the file's name for the computed tokens of a sequence."""
    tokens = sequence.tokens[: sequence.n_computed]
    return hashlib.sha256(repr((sequence.group, tokens)).encode()).hexdigest()[:32] + SUFFIX


def file_bytes(sequence: Sequence, key: str, n_bytes: int) -> int:
    """Return the size of the file that holds `n_bytes` of state."""
    return _HEAD_BYTES + len(_header(sequence, key, n_bytes, 0)) + n_bytes


def write(
    path: Path, sequence: Sequence, key: str, n_bytes: int, fill: Callable[[memoryview], bool]
) -> bool:
    """Write the file; `fill` puts the state into a mapping, or answers False to give up.

    Raises OSError.
    """
    size = file_bytes(sequence, key, n_bytes)
    offset = size - n_bytes
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    unlink(temporary)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, stat.S_IRUSR | stat.S_IWUSR)
    try:
        # A mapping of a file with holes would end in SIGBUS on a full disk.
        os.posix_fallocate(descriptor, 0, size)
        # Mapped, not buffered: on a small box there may be no room for the state a second time.
        mapped = mmap.mmap(descriptor, size)
        state = memoryview(mapped)[offset:]
        if not fill(state):
            return False
        header = _header(sequence, key, n_bytes, zlib.crc32(state))
        mapped[:offset] = _head(header) + header
        temporary.rename(path)
    finally:
        os.close(descriptor)
        unlink(temporary)
    return True


def _header(sequence: Sequence, key: str, n_bytes: int, checksum: int) -> bytes:
    """Return the header; its length does not depend on the checksum."""
    n = sequence.n_computed
    tokens = sequence.tokens[:n]
    spans = [span for span in sequence.spans if span.end <= n]
    named = [(s.start, s.n, s.n_positions, s.whole, f"{tokens[s.start]:x}") for s in spans]
    for span in spans:
        tokens[span.start : span.end] = [0] * span.n
    return msgspec.msgpack.encode(
        _Header(
            key=key,
            group=sequence.group,
            tokens=array.array("i", tokens).tobytes(),
            spans=named,
            n_bytes=n_bytes,
            checksum=checksum | _ANY_CHECKSUM,
            uses=sequence.uses,
        )
    )


def _head(header: bytes) -> bytes:
    return _MAGIC + len(header).to_bytes(4, "little") + zlib.crc32(header).to_bytes(4, "little")


def read_header(path: Path, key: str) -> SavedPrefix | None:
    """Return what a file says of itself; None if it is torn or was written for another key."""
    try:
        descriptor = os.open(path, _READ_ONLY)
        try:
            head = os.pread(descriptor, _HEAD_BYTES, 0)
            length = int.from_bytes(head[len(_MAGIC) : len(_MAGIC) + 4], "little")
            packed = os.pread(descriptor, min(length, _MOST_HEADER_BYTES), _HEAD_BYTES)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if head != _head(packed):
            return None
        header = msgspec.msgpack.decode(packed, type=_Header)
        prefix = _prefix(path, header, offset=_HEAD_BYTES + length)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    whole = header.key == key and size == prefix.offset + prefix.n_bytes and prefix.tokens
    return prefix if whole else None


def _prefix(path: Path, header: _Header, offset: int) -> SavedPrefix:
    tokens = array.array("i", header.tokens).tolist()
    spans: list[Span] = []
    for start, n, n_positions, whole, first in header.spans:
        spans.append(Span(start, n, n_positions, whole))
        place = int(first, 16)
        tokens[start : start + n] = range(place, place + n)
    return SavedPrefix(
        path=path,
        group=header.group,
        tokens=tokens,
        spans=tuple(spans),
        n_bytes=header.n_bytes,
        offset=offset,
        checksum=header.checksum - _ANY_CHECKSUM,
        uses=header.uses,
    )


def read(prefix: SavedPrefix) -> memoryview | None:
    """Return a file's state, mapped and checked, or None if it is not what it was."""
    try:
        descriptor = os.open(prefix.path, _READ_ONLY)
        try:
            if os.fstat(descriptor).st_size != prefix.offset + prefix.n_bytes:
                return None
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return None
    state = memoryview(mapped)[prefix.offset :]
    return state if zlib.crc32(state) == prefix.checksum else None


def unlink(path: Path) -> None:
    """Remove a file; one that is gone, or cannot go, is no error."""
    with contextlib.suppress(OSError):
        path.unlink()
