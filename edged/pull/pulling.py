"""Brings sources to this box: resolved, fetched, verified, locked.

Works in whoever calls it, in order, and blocks: `edged pull` calls it itself, the daemon has a
child process for it (`__main__`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from edged.config import Config, Source
from edged.config.values import format_bytes
from edged.errors import StoreError
from edged.pull.progress import Progress
from edged.store import folders, lock
from edged.store.download import Download, Rate, check_room
from edged.store.listing import RemoteFile
from edged.store.lock import Form, Lock, Locked, LockedFile
from edged.store.resolution import Pick, Resolution, resolve_remote
from edged.store.web import Web

_TELL_S = 0.25
_RATE_S = 5.0  # over which the speed is measured


class Pull:
    """Brings sources into the store of a configuration. `pick` chooses for `:auto`."""

    def __init__(
        self,
        config: Config,
        pick: Callable[[Web, str], Pick],
        tell: Callable[[Progress], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = config.store
        self.store = folders.models(config.store.folder, config.path)
        self._web = Web(sleep)
        self._download = Download(self.store, self._web, Rate(config.store.max_rate_bytes))
        self._pick = pick
        self._tell = tell

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._web.close()

    def resolve(self, source: Source, model: str, form: Form = "gguf") -> Resolution:
        """Ask the server what `source` means now; raises StoreError."""
        self._tell(Progress(str(source), note="asking"))
        return resolve_remote(self._web, source, form, self._settings, self._pick(self._web, model))

    def fetch(self, wanted: Resolution) -> Locked:
        """Bring all files of `wanted` to their places and write the lock; raises StoreError."""
        with lock.bringing(self.store):
            return self._bring(wanted)

    def _bring(self, wanted: Resolution) -> Locked:
        known = lock.read(self.store)
        targets = [(file, role, self._target(wanted, file)) for file, role in wanted.files]
        for file, _, target in targets:
            self._link(known, file, target)
        missing = sum(self._download.missing_bytes(file, target) for file, _, target in targets)
        check_room(self.store, missing, str(wanted.source))
        counter = _Counter(wanted, self._tell)
        files = []
        for file, role, target in targets:
            counter.begin(file)
            sha256 = self._download.fetch(
                file,
                target,
                headers=wanted.headers,
                tell=counter.tell,
                waiting=counter.waiting,
            )
            path = str(target.relative_to(self.store))
            files.append(LockedFile(path, target.stat().st_size, sha256, role))
        entry = Locked(
            source=str(wanted.source),
            form=wanted.form,
            revision=wanted.revision,
            files=tuple(files),
            chosen=wanted.chosen,
            why=wanted.why,
            licence=wanted.licence,
            fetched_at=lock.now(),
        )
        lock.change(self.store, lambda now: now.having(entry))
        return entry

    def _target(self, wanted: Resolution, file: RemoteFile) -> Path:
        parts = [*wanted.folder.split("/"), *file.path.split("/")]
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise StoreError(f"{wanted.source} has a file of the name {file.path!r}")
        return self.store.joinpath(*parts)

    def _link(self, known: Lock, file: RemoteFile, target: Path) -> None:
        """Take a file that an older revision has as well, without fetching or copying it."""
        if file.sha256 is None or target.exists():
            return
        for entry in known.sources:
            for old in entry.files:
                if old.sha256 == file.sha256 and (self.store / old.path).is_file():
                    lock.make_folder(target.parent, self.store)
                    try:
                        os.link(self.store / old.path, target)
                    except OSError:  # no hard links here, or another process was faster
                        return
                    return


class _Counter:
    """Tells how far all files of one resolution are together, a few times a second."""

    def __init__(self, wanted: Resolution, tell: Callable[[Progress], None]) -> None:
        self._source = str(wanted.source)
        self._total = wanted.bytes
        self._tell = tell
        self._before = 0  # bytes of the files that are finished
        self._file = RemoteFile("", 0, "")
        self._at: list[tuple[float, int]] = []  # the last seconds
        self._told_s = 0.0

    def begin(self, file: RemoteFile) -> None:
        self._before += self._file.bytes or 0
        self._file = file
        self._at = []
        self._say(0, "")

    def waiting(self) -> None:
        self._say(0, "another process fetches it")

    def tell(self, n_bytes: int) -> None:
        now = time.monotonic()
        if now - self._told_s < _TELL_S and n_bytes != self._file.bytes:
            return
        self._at.append((now, n_bytes))
        while now - self._at[0][0] > _RATE_S:
            self._at.pop(0)
        self._say(n_bytes, "")

    def _say(self, n_bytes: int, note: str) -> None:
        self._told_s = time.monotonic()
        done = self._before + n_bytes
        rate = left = None
        if len(self._at) > 1:
            (began, had), (now, has) = self._at[0], self._at[-1]
            rate = (has - had) / max(now - began, 1e-3)
            left = max(0, self._total - done) / rate if rate > 0 else None
        self._tell(Progress(self._source, self._file.path, done, self._total, rate, left, note))


def changes(old: Locked | None, new: Resolution) -> str | None:
    """Return how `new` differs from what is locked, for a person; None: it does not."""
    if old is None:
        return f"is new: {len(new.files)} files, {format_bytes(new.bytes)}"
    if old.revision == new.revision and old.chosen == new.chosen:
        return None
    had = {Path(file.path).name: file for file in old.files}
    lines = [f"revision {old.revision[:12]} → {new.revision[:12]}"]
    if old.chosen != new.chosen:
        lines.append(f"{old.chosen} → {new.chosen}" + (f" ({new.why})" if new.why else ""))
    for file, _ in new.files:
        name = Path(file.path).name
        before = had.pop(name, None)
        size = format_bytes(file.bytes) if file.bytes is not None else "of unknown size"
        if before is None:
            lines.append(f"{name}: new, {size}")
        elif file.sha256 is not None and file.sha256 != before.sha256:
            lines.append(f"{name}: {format_bytes(before.bytes)} → {size}, other content")
    lines += [f"{name}: not any more" for name in had]
    return "\n  ".join(lines)
