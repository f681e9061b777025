"""One file from a server to its place: resumed, measured, verified, moved there as a whole.

What arrives is written to `NAME.part` beside the place. `NAME.part.json` says what the part is of
and how much of it is surely on the disk: after a power loss a file can have its length without its
content, so then only that much counts; after a mere kill the kernel still has all that was written.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import httpx
import msgspec
from msgspec import Struct

from edged import atomic
from edged.config.values import format_bytes
from edged.errors import StoreError, Unreachable
from edged.store import verify
from edged.store.listing import RemoteFile
from edged.store.lock import alone, make_folder, own
from edged.store.web import Patience, Web

_PIECE_BYTES = 1 << 18
_SYNC_BYTES = 256 << 20
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Rate:
    """Lets so many bytes a second through, over all that one process fetches."""

    def __init__(
        self,
        bytes_per_s: int | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()

    def passed(self, n_bytes: int) -> None:
        """Take note of bytes that have arrived, and wait until the next may."""
        if self._bytes_per_s is None:
            return
        now = self._clock()
        # what was not used a second ago is lost: no burst after a pause
        self._free_at = max(self._free_at, now - 1) + n_bytes / self._bytes_per_s
        if self._free_at > now:
            self._sleep(self._free_at - now)


class _Part(Struct):
    """The note beside a part."""

    of: str  # digest or URL
    boot: str
    synced: int = 0  # bytes that a power loss cannot take
    etag: str = ""


class Download:
    """Fetches files into one store, one after the other."""

    def __init__(self, store: Path, web: Web, rate: Rate) -> None:
        self._store = store
        self._web = web
        self._rate = rate

    def missing_bytes(self, file: RemoteFile, target: Path) -> int:
        """Return what is still to come of a file."""
        if target.exists() or file.bytes is None:
            return 0
        part = _part(target)
        return max(0, file.bytes - (part.stat().st_size if part.exists() else 0))

    def fetch(
        self,
        file: RemoteFile,
        target: Path,
        *,
        headers: dict[str, str],
        tell: Callable[[int], None],
        waiting: Callable[[], None] = lambda: None,
    ) -> str:
        """Bring `file` to `target` unless it is there, and return its SHA-256.

        `tell` hears how many bytes are there; `waiting` is called when another process fetches the
        same. Raises StoreError: nothing of a file that is not whole is ever at `target`.
        """
        make_folder(target.parent, self._store)
        try:
            with alone(self._store, str(target.relative_to(self._store)), waiting):
                found = self._as_it_is(file, target, tell)
                return found or self._fetch(file, target, headers, tell)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreError(
                    f"the disk of {target.parent} is full; what has arrived stays there, and goes "
                    "on from it once there is room"
                ) from None
            raise StoreError(f"{target} cannot be written: {error.strerror}") from None

    def _as_it_is(self, file: RemoteFile, target: Path, tell: Callable[[int], None]) -> str | None:
        """Return the digest of a file that is at its place already, and right."""
        if not target.exists():
            return None
        if file.bytes in (None, target.stat().st_size):
            sha256 = verify.digest(target, tell)
            if not _misfit(file, target, sha256):
                return sha256
        target.unlink()
        return None

    def _fetch(
        self, file: RemoteFile, target: Path, headers: dict[str, str], tell: Callable[[int], None]
    ) -> str:
        part = _part(target)
        resumed = part.exists() and part.stat().st_size > 0
        arrival = _Arrival(
            file,
            part,
            store=self._store,
            headers=headers,
            web=self._web,
            rate=self._rate,
            tell=tell,
        )
        sha256 = arrival.bring()
        wrong = _misfit(file, part, sha256)
        if wrong and resumed:  # the old half may be to blame: once more from the beginning
            _forget(part)
            sha256 = arrival.bring()
            wrong = _misfit(file, part, sha256)
        try:
            if wrong:
                raise _damaged(file, wrong)
            verify.check_header(part, file.path)
        except StoreError:
            _forget(part)
            raise
        part.replace(target)
        _note(part).unlink(missing_ok=True)
        atomic.sync(target.parent)
        return sha256


class _Arrival:
    """The bytes of one file on their way into its part."""

    def __init__(
        self,
        file: RemoteFile,
        part: Path,
        *,
        store: Path,
        headers: dict[str, str],
        web: Web,
        rate: Rate,
        tell: Callable[[int], None],
    ) -> None:
        self._store = store
        self._file = file
        self._part = part
        self._headers = headers
        self._web = web
        self._rate = rate
        self._tell = tell
        self._note = _Part(of="", boot="")
        self._sha256 = hashlib.sha256()

    def bring(self) -> str:
        """Bring all bytes into the part and onto the disk; return their SHA-256."""
        self._ready_part()
        own(self._part, self._store)
        self._sha256 = hashlib.sha256()
        with self._part.open("r+b", buffering=0) as out:
            while piece := out.read(_PIECE_BYTES):  # a digest cannot be saved: read what is there
                self._sha256.update(piece)
            self._tell(out.tell())
            patience = Patience(self._web.sleep)
            whole = self._is_whole(out)
            while not whole:
                try:
                    whole = self._pour(out, patience)
                except Unreachable as error:
                    patience.after(error)
            os.fsync(out.fileno())
        return self._sha256.hexdigest()

    def _ready_part(self) -> None:
        """Make the part one of this file, no longer than what surely is right, with its note."""
        file, part = self._file, self._part
        of = file.sha256 or file.git_sha1 or file.url
        boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
        try:
            old = msgspec.json.decode(_note(part).read_bytes(), type=_Part)
        except (OSError, msgspec.MsgspecError):
            old = _Part(of="", boot="")
        has = part.stat().st_size if part.exists() else 0
        keep = has if old.boot == boot else min(has, old.synced)
        if old.of != of or file.bytes is None or keep > file.bytes:
            keep = 0
        with part.open("ab") as out:
            out.truncate(keep)
        self._note = _Part(
            of=of, boot=boot, synced=min(old.synced, keep), etag=old.etag if keep else ""
        )
        self._write_note()

    def _write_note(self) -> None:
        data = msgspec.json.encode(self._note)
        atomic.write(_note(self._part), data, owner=atomic.owner(self._store))

    def _is_whole(self, out: BinaryIO) -> bool:
        return self._file.bytes is not None and out.tell() >= self._file.bytes

    def _pour(self, out: BinaryIO, patience: Patience) -> bool:
        """Write what one answer brings, and return whether that was all.

        Leaves `out` empty when the server has something else than the part was of.
        """
        at = out.tell()
        asked = self._headers | ({"range": f"bytes={at}-"} if at else {})
        if at and self._note.etag:
            asked["if-range"] = self._note.etag
        with self._web.stream(self._file.url, asked) as response:
            if at and not _continues(response, at):
                self._begin_anew(out)
                return False
            if not at:
                etag = response.headers.get("etag", "")
                self._note.etag = "" if etag.startswith("W/") else etag
                self._write_note()
            # as they come: pieces of a fixed size would lose what a cut leaves in the buffer
            for piece in response.iter_raw():
                self._take(piece, out)
                patience.progress()
                self._rate.passed(len(piece))
            if self._file.bytes is not None and not self._is_whole(out):
                raise Unreachable(f"{response.url.host} broke off at byte {out.tell()}")
        return True

    def _take(self, piece: bytes, out: BinaryIO) -> None:
        most = self._file.bytes
        if most is not None and out.tell() + len(piece) > most:
            self._begin_anew(out)
            raise _damaged(self._file, f"it is longer than the {most} bytes that were announced")
        out.write(piece)
        self._sha256.update(piece)
        if out.tell() - self._note.synced >= _SYNC_BYTES:
            os.fsync(out.fileno())
            self._note.synced = out.tell()
            self._write_note()
        self._tell(out.tell())

    def _begin_anew(self, out: BinaryIO) -> None:
        out.seek(0)
        out.truncate()
        self._sha256 = hashlib.sha256()
        self._note.etag, self._note.synced = "", 0


def _damaged(file: RemoteFile, wrong: str) -> StoreError:
    return StoreError(
        f"{file.path} arrived damaged: {wrong}. Nothing of it was kept; try again, and if it "
        "happens again look for a proxy or a mirror that changes files"
    )


def _continues(response: httpx.Response, at: int) -> bool:
    """Tell whether an answer goes on at byte `at`, and is not the whole file again."""
    said = response.headers.get("content-range", "")
    return response.status_code == httpx.codes.PARTIAL_CONTENT and said.startswith(f"bytes {at}-")


def _misfit(file: RemoteFile, path: Path, sha256: str | None = None) -> str | None:
    """Return how a file differs from what the server said of it."""
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        return f"it has {size} bytes instead of {file.bytes}"
    if file.sha256 is not None:
        found = sha256 or verify.digest(path)
        if found != file.sha256.lower():
            return f"its SHA-256 is {found} instead of {file.sha256}"
    elif file.git_sha1 is not None and verify.git_digest(path) != file.git_sha1:
        return f"its git digest is not {file.git_sha1}"
    return None


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise StoreError with the figures when `needed` bytes do not fit beside a small reserve."""
    free = verify.free_bytes(folder)
    if needed + _RESERVE_BYTES > free:
        raise StoreError(
            f"{what} needs {format_bytes(needed)} more on the disk, and {format_bytes(free)} are "
            f"free at {folder} ({format_bytes(_RESERVE_BYTES)} stay free): make room, for example "
            "with `edged gc`, or set [store] folder"
        )


_RESERVE_BYTES = 64 << 20
