"""The package is built once, the machine booted once for each release."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance.machine import CACHE, Machine, booted, obstacle

ROOT = Path(__file__).parent.parent.parent
OBSTACLE = obstacle()
RELEASES = os.environ.get("EDGED_TEST_RELEASES", "bookworm trixie").split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if OBSTACLE and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=OBSTACLE))


@pytest.fixture(scope="session", autouse=True)
def _boots() -> None:
    """Skip everything, with the reason, where not even an empty machine can be made and booted."""
    try:
        with booted(RELEASES[0], name="edgedprobe"):
            pass
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"a system cannot be booted here: {' '.join(str(error).split())[:300]}")


def built(folder: Path, version: str) -> Path:
    """Build the package as `make deb` does, quickly: with the llama.cpp that is there already."""
    there = sorted((CACHE / "wheels" / "llama").glob("llama_cpp_python-*.whl"))
    wheel = there[-1] if there else _llama_of_this_environment()
    subprocess.run(
        [ROOT / "packaging/make-deb", folder],
        env=os.environ
        | {
            "COMPRESS": "zstd",
            "VERSION": version,
            "LLAMA_WHEEL": str(wheel),
            "HOUSE": str(CACHE / "wheels"),
        },
        check=True,
        timeout=600,
        stdout=subprocess.DEVNULL,
    )
    return next(folder.glob(f"edged_{version}_*.deb"))


def _llama_of_this_environment() -> Path:
    """Return the wheel that pip keeps of the llama.cpp that it compiled for the tests."""
    lock = (ROOT / "requirements.lock").read_text()
    pinned = next(line for line in lock.split() if line.startswith("llama-cpp-python=="))
    folder = CACHE / "llama"
    shutil.rmtree(folder, ignore_errors=True)
    pip = [ROOT / ".venv/bin/python", "-m", "pip", "wheel", "--quiet", "--no-deps"]
    try:
        subprocess.run([*pip, "--wheel-dir", folder, pinned], check=True, timeout=240)
    except subprocess.TimeoutExpired:
        pytest.skip("pip does not have the compiled llama.cpp any more: packaging/llama-wheel")
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions; only their number differs."""
    folder = tmp_path_factory.mktemp("deb")
    return [built(folder, "0.1.0~test1"), built(folder, "0.1.0~test2")]


@pytest.fixture(scope="module", params=RELEASES)
def machine(request: pytest.FixtureRequest, packages: list[Path]) -> Iterator[Machine]:
    """A machine of each release, with a wire to us and the package beside it, not installed."""
    with booted(request.param, name="edgedtest", network="veth") as found:
        for package in packages:
            found.push(package, "/root")
        yield found


def install(machine: Machine, package: Path) -> float:
    """Install a package file without any network; return how long it took, in s."""
    began = time.monotonic()
    machine.sh(f"apt-get install -y /root/{package.name}", limit_s=300)
    return time.monotonic() - began
