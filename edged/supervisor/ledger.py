"""Measured memory of each launch, kept on disk: an estimate serves only until there is one.

Read once, written now and then by a thread. A file that cannot be read or written costs the
memory of earlier daemons, nothing else. One owner: the supervisor, in the loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from edged import atomic
from edged.log import get_logger
from edged.plan import ModelPlan
from edged.plan.places import MAIN, Sizes, most

log = get_logger()

_MOST = 1000  # launches; those longest unused are forgotten
_TRUSTED = 8  # requests, after which a worker has touched what it touches
_SPARE = 0.02  # of a measured peak: the next run is not the same to the page
_VERSION = 1


class Entry(Struct, frozen=True):
    """What one launch took at most, and what its load took; sizes in bytes."""

    model: str  # for people: the launch decides, not its name
    peak_bytes: int  # PSS and swap
    requests: int  # that its workers have answered
    load_s: float
    seen_at: float  # seconds since the epoch; only for forgetting
    gpu_bytes: dict[str, int] = {}  # by place, as NVML says
    buffers: dict[str, int] = {}  # what the engine says that it allocated for what, in bytes


class _File(Struct):
    version: int
    launches: dict[str, Entry]


class Ledger:
    """`path` None: nothing is kept beyond this object."""

    def __init__(self, path: Path | None = None) -> None:
        self.problem: str | None = None  # why it is not on the disk
        self._path = path
        self._entries = self._read()
        self._dirty = False

    def wanted(self, plan: ModelPlan, build: str | None) -> Sizes:
        """Return what a worker of this plan will take where: as measured, else as estimated."""
        sizes = plan.sizes
        entry = self._entries.get(_key(plan, build))
        if entry is None:
            return sizes
        measured = {**entry.gpu_bytes, MAIN: int(entry.peak_bytes * (1 + _SPARE))}
        for place, size in measured.items():
            trusted = entry.requests >= _TRUSTED
            sizes[place] = size if trusted else max(size, sizes.get(place, 0))
        return sizes

    def load_s(self, plan: ModelPlan, build: str | None) -> float:
        """Return what the last load of this launch took, 0 if there was none."""
        entry = self._entries.get(_key(plan, build))
        return entry.load_s if entry else 0.0

    def record(
        self,
        plan: ModelPlan,
        build: str | None,
        *,
        peak_bytes: int,
        requests: int = 0,
        load_s: float | None = None,
        gpu_bytes: Sizes | None = None,
        buffers: dict[str, int] | None = None,
    ) -> None:
        """Note a measurement; `requests` since the last one."""
        key = _key(plan, build)
        name = plan.model.name
        old = self._entries.get(key, Entry(name, 0, 0, 0.0, 0.0))
        self._entries[key] = replace(
            old,
            model=name,
            peak_bytes=max(old.peak_bytes, peak_bytes),
            requests=old.requests + requests,
            load_s=old.load_s if load_s is None else load_s,
            seen_at=time.time(),
            gpu_bytes=most(old.gpu_bytes, gpu_bytes or {}),
            buffers=buffers or old.buffers,
        )
        self._dirty = True

    async def save(self) -> None:
        """Write it if anything is new; a disk that does not take it is only noted."""
        if self._path is None or not self._dirty:
            return
        self._dirty = False
        newest = sorted(self._entries.items(), key=lambda item: item[1].seen_at)[-_MOST:]
        self._entries = dict(newest)
        data = msgspec.json.format(msgspec.json.encode(_File(_VERSION, self._entries)))
        try:
            await asyncio.to_thread(_write, self._path, data)
        except OSError as error:
            if self.problem is None:
                log.warning("ledger.not_saved", path=str(self._path), reason=str(error))
            self.problem = f"measured memory is not kept: {error}"
            self._dirty = True
        else:
            self.problem = None

    def _read(self) -> dict[str, Entry]:
        if self._path is None:
            return {}
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            log.warning("ledger.not_read", path=str(self._path), reason=str(error))
            return {}
        return found.launches if found.version == _VERSION else {}


def _key(plan: ModelPlan, build: str | None) -> str:
    """Return what decides how much memory a worker takes: the whole launch but its name.

    A file whose digest is known is that file wherever it lies and however new it is.
    """
    launch = plan.launch
    if launch is None:
        return ""
    path, file_id = _file(plan, launch.path, launch.file_id)
    plain = replace(launch, model="", output_format="", path=path, file_id=file_id)
    if (own := launch.llamacpp) is not None:
        mmproj, mmproj_id = _file(plan, own.mmproj or "", own.mmproj_id)
        draft, draft_id = _file(plan, own.draft or "", own.draft_id)
        own = replace(
            own,
            prefix_cache=None,
            mmproj=mmproj,
            mmproj_id=mmproj_id,
            draft=draft,
            draft_id=draft_id,
        )
        plain = replace(plain, llamacpp=own)
    return hashlib.sha256(msgspec.json.encode((plain, build))).hexdigest()[:32]


def _file(plan: ModelPlan, path: str, file_id: str) -> tuple[str, str]:
    digest = plan.digests.get(path)
    return ("", digest) if digest else (path, file_id)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    atomic.write(path, data, mode=0o640)
