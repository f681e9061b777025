"""The environment that `edged setup-cuda` made: LMDeploy, apart from the daemon's packages.

It lies in the state folder; its path carries the version of Python, for its packages serve no
other. Only its stamp is read here, nothing of it is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

STAMP = "edged-cuda.json"
PACKAGE = "edged"  # linked into the environment, so that a worker of it is this edged's
_PREFIX = "cuda-py"


class Stamp(Struct, frozen=True):
    """What was installed, written when it was verified."""

    python: str  # "3.11"
    lmdeploy: str
    torch: str
    requirements: str  # digest of the list that was installed
    verified: str  # "import", or "gpu" where a token was generated


class CudaEnvironment(Struct, frozen=True):
    """One that is there. `problem`: why no worker can run in it, and what to do."""

    folder: str
    stamp: Stamp | None = None
    problem: str | None = None

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(Path(self.folder) / "bin/python")


def folder_in(state: Path) -> Path:
    """Return where the environment of this Python is, or would be."""
    return state / f"{_PREFIX}{sys.version_info.major}.{sys.version_info.minor}"


def find(states: Iterable[Path]) -> CudaEnvironment | None:
    """Return the first environment in one of these folders, one that works before others."""
    found = [environment for state in states for environment in _in(state)]
    return next((each for each in found if each.problem is None), found[0] if found else None)


def _in(state: Path) -> list[CudaEnvironment]:
    own = folder_in(state)
    try:
        others = [path for path in sorted(state.glob(f"{_PREFIX}*")) if path != own]
        return [_look(path) for path in (own, *others) if path.is_dir()]
    except OSError:  # not ours to read
        return []


def _look(folder: Path) -> CudaEnvironment:
    again = "run `edged setup-cuda` again"
    path = str(folder)
    if not os.access(folder / "bin/python", os.X_OK):
        return CudaEnvironment(path, problem=f"{folder} has lost its Python: {again}")
    try:
        stamp = msgspec.json.decode((folder / STAMP).read_bytes(), type=Stamp)
    except FileNotFoundError:
        return CudaEnvironment(path, problem=f"{folder} is not complete: {again}, it goes on")
    except (OSError, msgspec.MsgspecError) as error:
        return CudaEnvironment(path, problem=f"{folder}/{STAMP} cannot be read ({error}): {again}")
    packages = folder / f"lib/python{stamp.python}/site-packages"
    if not (packages / PACKAGE / "worker").is_dir():
        return CudaEnvironment(path, stamp, f"{packages}/{PACKAGE} leads nowhere: {again}")
    return CudaEnvironment(path, stamp)
