"""`edged setup-cuda`: look first, then install package by package, verify, and sign.

Every package is pinned by digest in `requirements.lock`, so that the index does not matter. What is
installed stays when something ends the command, and the next one goes on from there. Only the
stamp, written last, makes the daemon use it (`hardware/cuda.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

import edged
from edged import atomic
from edged.config.values import format_bytes
from edged.errors import EdgedError
from edged.hardware import Hardware
from edged.hardware.cuda import PACKAGE, STAMP, Stamp, folder_in
from edged.hardware.gpu import Gpu
from edged.plan import turbomind

LOCK = Path(__file__).parent / "requirements.lock"
_NEEDED_BYTES = 16 << 30  # 8.6 GB installed, a large wheel beside it, and room for models
_PACKAGE_LIMIT_S = 3600.0  # a slow line takes its time with 600 MB
_VERIFY_LIMIT_S = 300.0
_TRIAL_LIMIT_S = 600.0
_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 11), (3, 14)  # of LMDeploy's wheels and ours
_WRITTEN_LAST = "INSTALLER"  # by pip, once every file of a package is in its place
_NAME = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)")

# Run by the new interpreter: everything that a worker needs, and the native module.
_VERIFY = """
import json, sys
import torch, lmdeploy
from lmdeploy import turbomind
import edged.worker.lmdeploy.engine, edged.worker.__main__
native = turbomind.is_available()
why = "" if native else str(getattr(turbomind, "_import_error", ""))
print(json.dumps({"torch": torch.__version__, "lmdeploy": lmdeploy.__version__, "why": why}))
"""


class SetupError(EdgedError):
    """It cannot be installed here; the message says why and what to do."""


class Went(Struct, frozen=True):
    """How far it is: `done` of `total` packages, and what is being done."""

    done: int
    total: int
    doing: str


class Requirement(Struct, frozen=True):
    """One package of the lock, as pip reads it."""

    name: str
    version: str
    text: str


def requirements(lock: Path = LOCK) -> list[Requirement]:
    """Return the packages of the lock, in its order."""
    found: list[Requirement] = []
    block: list[str] = []
    for line in [*lock.read_text().splitlines(), "end==0"]:
        match = _NAME.match(line)
        if match and block:
            first = _NAME.match(block[0])
            assert first is not None
            found.append(Requirement(_plain(first[1]), first[2], "\n".join(block) + "\n"))
            block = []
        if match or block:
            block.append(line)
    return found


class Setup:
    """One environment below a state folder. `tell` hears of progress."""

    def __init__(
        self,
        state: Path,
        *,
        wheelhouse: Path | None = None,
        lock: Path = LOCK,
        tell: Callable[[Went], None] = lambda _: None,
    ) -> None:
        self.folder = folder_in(state)
        self._state = state
        self._wheelhouse = wheelhouse
        self._lock = lock
        self._tell = tell
        self._python = str(self.folder / "bin/python")
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        self._packages = self.folder / f"lib/python{version}/site-packages"

    # ── before anything ──

    def check(self, hardware: Hardware) -> Gpu:
        """Return the GPU with the most room of those that can be used.

        Raises SetupError where the result could not be used, or would not fit.
        """
        if not _OLDEST_PYTHON <= sys.version_info[:2] <= _NEWEST_PYTHON:
            raise SetupError(f"LMDeploy has no wheels for Python {sys.version.split()[0]}")
        if hardware.cpu.architecture != "x86_64":
            raise SetupError(f"LMDeploy has no wheels for {hardware.cpu.architecture}")
        gpus = [gpu for gpu in hardware.gpus if gpu.via == "nvml"]
        if not gpus:
            notes = "; ".join(note for note in hardware.notes if "GPU" in note or "NVML" in note)
            raise SetupError(f"there is no NVIDIA GPU that can be used{notes and f': {notes}'}")
        able = [gpu for gpu in gpus if turbomind.runs_on(gpu.compute_capability)]
        if not able:
            names = ", ".join(gpu.name for gpu in gpus)
            raise SetupError(f"LMDeploy has no machine code for {names}")
        driver = able[0].driver or ""
        number = driver.partition(".")[0]
        if number.isdecimal() and int(number) < turbomind.LEAST_DRIVER:
            raise SetupError(
                f"the NVIDIA driver is {driver}; LMDeploy needs {turbomind.LEAST_DRIVER} or newer: "
                "install a newer one with your distribution's tools, and restart the box"
            )
        self._check_disk()
        if self._wheelhouse is not None and not any(self._wheelhouse.glob("*.whl")):
            raise SetupError(f"{self._wheelhouse} has no wheels")
        return max(able, key=lambda gpu: gpu.free_bytes)

    def _check_disk(self) -> None:
        place = self._state
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        held = sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file())
        if free + held < _NEEDED_BYTES:
            raise SetupError(
                f"{place} has {format_bytes(free)} free, {format_bytes(_NEEDED_BYTES - held)} are "
                "needed"
            )

    # ── the work ──

    def install(self) -> None:
        """Install what is missing; raises SetupError, and then the next call goes on from there."""
        (self.folder / STAMP).unlink(missing_ok=True)  # half of it is not to be used
        self._make_environment()
        wanted = requirements(self._lock)
        here = self._installed()
        for n, package in enumerate(wanted):
            if here.get(package.name) != package.version:
                self._tell(Went(n, len(wanted), f"{package.name} {package.version}"))
                self._pip(package)
        self._link()
        self._tell(Went(len(wanted), len(wanted), "installed"))

    def _make_environment(self) -> None:
        if self.folder.exists() and not self._has_pip():
            shutil.rmtree(self.folder)  # its Python is gone, or it was broken off before pip came
        if not self.folder.exists():
            self._state.mkdir(parents=True, exist_ok=True)
            # The base interpreter: a venv of a venv would depend on the daemon's.
            base = getattr(sys, "_base_executable", sys.executable)
            self._run([base, "-m", "venv", str(self.folder)], "the environment cannot be made", 120)

    def _has_pip(self) -> bool:
        try:
            self._run([self._python, "-m", "pip", "--version"], "pip does not run", _VERIFY_LIMIT_S)
        except SetupError:
            return False
        return True

    def _installed(self) -> dict[str, str]:
        """Return the packages that are wholly there; what pip was broken off in is cleared away."""
        found = {}
        for place in self._packages.glob("*.dist-info"):
            if (place / _WRITTEN_LAST).exists():
                name, _, version = place.name.removesuffix(".dist-info").partition("-")
                found[_plain(name)] = version.partition("+")[0]
            else:  # pip would take it for installed
                shutil.rmtree(place)
        return found

    def _pip(self, package: Requirement) -> None:
        piece, room = self.folder / "installing.txt", self.folder / "tmp"
        piece.write_text(package.text)
        room.mkdir(exist_ok=True)
        house = self._wheelhouse
        source = ["--no-index", "--find-links", str(house)] if house else []
        self._run(
            [
                *(self._python, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"),
                *("--disable-pip-version-check", "--only-binary=:all:", "--require-hashes"),
                "--no-cache-dir",  # 4 GB that nobody asks for again
                *source,
                *("--requirement", str(piece)),
            ],
            f"{package.name} {package.version} cannot be installed",
            _PACKAGE_LIMIT_S,
            TMPDIR=str(room),  # /tmp may be memory, and is not what was measured
        )
        piece.unlink()
        shutil.rmtree(room)

    def _link(self) -> None:
        """Let the environment find this edged and nothing else of the daemon's packages."""
        link = self._packages / PACKAGE
        link.unlink(missing_ok=True)
        link.symlink_to(Path(edged.__file__).parent)

    # ── afterwards ──

    def verify(self, *, trial_on: Gpu | None) -> Stamp:
        """Import all, generate a token on a GPU where one is given, and sign; raises SetupError."""
        total = len(requirements(self._lock))
        self._tell(Went(total, total, "verifying"))
        said = self._run([self._python, "-c", _VERIFY], "it does not import", _VERIFY_LIMIT_S)
        found = json.loads(said.splitlines()[-1])
        if found["why"]:
            raise SetupError(f"TurboMind's native module does not load: {found['why']}")
        if trial_on is not None:
            where = f"GPU {trial_on.index} ({trial_on.name})"
            self._tell(Went(total, total, f"generating a token on {where}"))
            command = [self._python, "-m", "edged.worker.lmdeploy.trial", str(trial_on.index)]
            self._run(command, f"no token can be generated on {where}", _TRIAL_LIMIT_S)
        stamp = Stamp(
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
            lmdeploy=found["lmdeploy"],
            torch=found["torch"],
            requirements=hashlib.sha256(self._lock.read_bytes()).hexdigest(),
            verified="import" if trial_on is None else "gpu",
        )
        atomic.write(self.folder / STAMP, msgspec.json.format(msgspec.json.encode(stamp)))
        return stamp

    def _run(self, command: Sequence[str], failure: str, limit_s: float, **env: str) -> str:
        try:
            done = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                timeout=limit_s,
                cwd=self._state,
                # what the daemon's environment says of Python is not this one's
                env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | env,
            )
        except subprocess.TimeoutExpired:
            raise SetupError(f"{failure}: it took longer than {limit_s:.0f} s") from None
        except OSError as error:
            raise SetupError(f"{failure}: {error}") from None
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise SetupError(f"{failure}: {' / '.join(lines[-3:]) or f'exit {done.returncode}'}")
        return done.stdout


def remove(state: Path) -> list[Path]:
    """Delete every environment below a state folder and return which; raises SetupError."""
    gone = [path for path in sorted(state.glob("cuda-py*")) if path.is_dir()]
    for path in gone:
        try:
            (path / STAMP).unlink(missing_ok=True)  # first: what is half gone is not used
            shutil.rmtree(path)
        except OSError as error:
            raise SetupError(f"{path} cannot be removed: {error.strerror}") from None
    return gone


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
