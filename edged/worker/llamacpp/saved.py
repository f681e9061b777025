"""Prefixes on the disk: what a model had in memory when its worker left, for the next one.

    FOLDER/MODEL/KEY/NAME.kv

KEY stands for everything that the bytes of a state depend on (`key_of`), NAME for group and tokens.
Several workers may share FOLDER: they only ever rename into it and unlink. A file that is torn,
foreign or unreadable is removed when it is met. Nothing here raises but `write`: without a file a
prompt is computed as ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edged.log import get_logger
from edged.protocol import PrefixCache
from edged.worker.llamacpp import saved_file
from edged.worker.llamacpp.prefixes import Prefixes
from edged.worker.llamacpp.saved_file import FORMAT, SUFFIX, TEMPORARY, SavedPrefix, unlink
from edged.worker.llamacpp.sequence import Sequence

log = get_logger()

_FREE_SHARE = 0.05  # of the disk that is left to others
_LETTERS = re.compile(r"[^A-Za-z0-9_-]+")


class DiskError(Exception):
    """The disk does not take a prefix; the message says why."""


def key_of(*parts: str | bool) -> str:
    """Return the key of what `parts` describe: each of them makes states incompatible."""
    return hashlib.sha256(repr((FORMAT, *parts)).encode()).hexdigest()[:32]


class SavedPrefixes:
    """The saved prefixes of one model. One owner: the engine thread, once it runs."""

    def __init__(
        self, cache: PrefixCache, model: str, key: str, *, cuttable: bool, spare: int = 0
    ) -> None:
        """Read the headers of what is there, and remove what does not belong there.

        `cuttable`: the beginning of a state is of use; otherwise only a whole one, or what is left
        without its last `spare` tokens.
        """
        self._root = Path(cache.folder)
        self._model = self._root / _folder_of(model)
        self._folder = self._model / key
        self._cache = cache
        self._key = key
        self.cuttable = cuttable
        self._spare = spare
        self._tree: Prefixes[SavedPrefix] = Prefixes()
        self._by_path: dict[Path, SavedPrefix] = {}
        self._kept: set[Path] = set()  # they do not leave for colder ones
        self._seen_ns = 0  # the folder's time when it was read
        with contextlib.suppress(OSError):  # not there yet, or not ours
            self._tidy()
        self._read_folder()

    def __len__(self) -> int:
        return len(self._by_path)

    def _read_folder(self) -> None:
        """Take in what is new: the worker before this one may leave, and save, after it began."""
        with contextlib.suppress(OSError):
            changed_ns = self._folder.stat().st_mtime_ns
            if changed_ns != self._seen_ns:
                self._seen_ns = changed_ns
                for path in sorted(self._folder.glob(f"*{SUFFIX}")):
                    if path not in self._by_path:
                        self._admit(path)

    def _admit(self, path: Path) -> None:
        found = saved_file.read_header(path, self._key)
        if found is None:
            log.warning("prefixes.unreadable", file=str(path))
            unlink(path)
        else:
            self._by_path[path] = found
            self._tree.put(found, found.group, found.tokens)

    # ── looking ──

    def best(self, sequence: Sequence) -> tuple[SavedPrefix | None, int]:
        """Return the saved prefix that saves most of this prompt's tokens, and how many."""
        self._read_folder()
        limit = len(sequence.tokens) - 1  # one token must be computed, for its logits
        best: SavedPrefix | None = None
        n = 0
        for matched, holders in self._tree.match(sequence.group, sequence.tokens):
            length = sequence.floor(min(matched, limit))
            if not self.cuttable:
                for holder in holders:
                    n_of_use = min(len(holder.tokens), length)
                    if n_of_use > n and len(holder.tokens) - n_of_use <= self._spare:
                        best, n = holder, n_of_use
            elif length > n:
                best, n = min(holders, key=lambda h: (h.n_bytes, h.path)), length
        return best, n

    def holder_of(self, sequence: Sequence) -> SavedPrefix | None:
        """Return a file that makes saving this sequence pointless: it holds all of its tokens."""
        n = sequence.n_computed
        for matched, holders in self._tree.match(sequence.group, sequence.tokens[:n]):
            of_use = [h for h in holders if self.cuttable or len(h.tokens) == n]
            if matched == n and of_use:
                return min(of_use, key=lambda h: h.path)
        return None

    # ── changing ──

    def used(self, prefix: SavedPrefix) -> None:
        """Note that it was of use: it leaves later."""
        with contextlib.suppress(OSError):
            os.utime(prefix.path)

    def keep(self, prefix: SavedPrefix) -> None:
        """Let it stay while others are written: it is hotter."""
        self._kept.add(prefix.path)
        self.used(prefix)

    def remove(self, prefix: SavedPrefix) -> None:
        """Forget a prefix and its file."""
        self._remove(prefix.path)

    def write(
        self, sequence: Sequence, n_bytes: int, fill: Callable[[memoryview], bool]
    ) -> SavedPrefix | None:
        """Save the computed tokens of `sequence`: `fill` puts `n_bytes` of state into a mapping.

        Returns None if it has no place within the budgets, or `fill` had nothing to give. The
        longest unused files leave for it; those whose tokens it continues, too. Raises DiskError.
        """
        path = self._folder / saved_file.name_of(sequence)
        size = saved_file.file_bytes(sequence, self._key, n_bytes)
        contained = self._contained_in(sequence)
        try:
            if not self._make_room(size, self._kept - {path, *contained}):
                return None
            self._make_folders()
            self._check_disk(size)
            if not saved_file.write(path, sequence, self._key, n_bytes, fill):
                return None
        except (OSError, ValueError) as error:
            raise DiskError(str(error)) from error
        for gone in contained:
            self._remove(gone)
        self._forget(path)
        self._kept.add(path)
        self._admit(path)
        return self._by_path.get(path)

    def _contained_in(self, sequence: Sequence) -> list[Path]:
        """Return the files whose tokens all stand at the beginning of this sequence's."""
        if not self.cuttable:  # each one is a state of its own, of use at its own end only
            return []
        tokens = sequence.tokens[: sequence.n_computed]
        return [
            holder.path
            for length, holders in self._tree.match(sequence.group, tokens)
            for holder in holders
            if len(holder.tokens) == length < len(tokens)
        ]

    def _remove(self, path: Path) -> None:
        self._forget(path)
        unlink(path)

    def _forget(self, path: Path) -> None:
        prefix = self._by_path.pop(path, None)
        if prefix is not None:
            self._tree.remove(prefix)

    # ── room ──

    def _make_room(self, n_bytes: int, keep: set[Path]) -> bool:
        """Let the longest unused leave until both budgets hold; False if that is not enough."""
        for folder, budget in self._budgets():
            leaving = leavers(_weighed(folder), n_bytes, budget, keep)
            if leaving is None:
                return False
            for path in leaving:
                self._remove(path)
        return True

    def _budgets(self) -> list[tuple[Path, int]]:
        return [(self._model, self._cache.bytes), (self._root, self._cache.total)]

    def _check_disk(self, n_bytes: int) -> None:
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize - n_bytes < _FREE_SHARE * disk.f_blocks * disk.f_frsize:
            raise DiskError(f"less than {_FREE_SHARE:.0%} of the disk would be free")

    def _make_folders(self) -> None:
        for folder in (self._root, self._model, self._folder):
            folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)

    def _tidy(self) -> None:
        """Hold the budgets, which may be smaller now, and clear what killed writers left."""
        for folder, budget in self._budgets():
            for path in leavers(_weighed(folder), 0, budget, set()) or ():
                unlink(path)
        for path in self._model.glob(f"*/.*{TEMPORARY}"):
            writer = path.name.split(".")[-2]
            if not Path("/proc", writer).exists():
                unlink(path)
        for folder in self._model.iterdir():
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def forget_all(cache: PrefixCache, model: str) -> None:
    """Remove everything that was saved for a model."""
    for path in (Path(cache.folder) / _folder_of(model)).glob(f"*/*{SUFFIX}"):
        unlink(path)


def _folder_of(model: str) -> str:
    """Return a folder's name for a model's: readable, and no two alike."""
    unique = hashlib.sha256(model.encode()).hexdigest()[:8]
    return f"{_LETTERS.sub('-', model)[:40]}-{unique}"


# ── budgets ──


@dataclass(frozen=True, slots=True)
class File:
    """What a budget knows of a file."""

    path: Path
    n_bytes: int
    used_at: float  # s


def leavers(files: list[File], n_bytes: int, budget: int, keep: set[Path]) -> list[Path] | None:
    """Return who leaves, the longest unused first, so that `n_bytes` more fit into the budget.

    None: it cannot be reached without those to `keep`.
    """
    excess = sum(file.n_bytes for file in files) + n_bytes - budget
    leaving: list[Path] = []
    for file in sorted(files, key=lambda file: (file.used_at, file.path)):
        if excess <= 0:
            break
        if file.path not in keep:
            leaving.append(file.path)
            excess -= file.n_bytes
    return leaving if excess <= 0 else None


def _weighed(folder: Path) -> list[File]:
    found: list[File] = []
    for path in folder.glob(f"**/*{SUFFIX}"):
        with contextlib.suppress(OSError):  # another worker was faster
            status = path.lstat()
            found.append(File(path, status.st_size, status.st_mtime))
    return found
