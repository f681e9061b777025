"""The package is built once, the machine booted once for each release."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.appliance.machine import CACHE, Machine, booted, obstacle, scratch

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


class Packages(NamedTuple):
    """What the tests install. `asking` has another models.toml than the two before it."""

    first: Path
    second: Path
    asking: Path
    cuda: Path


def built(folder: Path, version: str, **environment: str) -> Path:
    """Build the package as `make deb` does, quickly: with the llama.cpp that is there already."""
    done = subprocess.run(
        [ROOT / "packaging/make-deb", folder],
        env=os.environ
        | {
            "COMPRESS": "zstd",
            "VERSION": version,
            "LLAMA_WHEEL": str(_llama_wheel()),
            "HOUSE": str(CACHE / "wheels"),
        }
        | environment,
        check=False,
        timeout=600,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("the wheels of the other Pythons cannot be had from pip's index here")
    assert done.returncode == 0, done.stderr
    return next(folder.glob(f"edged_{version}_*.deb"))


def repacked(package: Path, version: str, *, config: str = "", compress: str = "-Zzstd") -> Path:
    """Return the same package with another version, and something after its models.toml."""
    with scratch() as folder:
        subprocess.run(["dpkg-deb", "-R", package, folder / "root"], check=True)
        control = folder / "root/DEBIAN/control"
        control.write_text(
            re.sub(r"^Version: .*$", f"Version: {version}", control.read_text(), flags=re.MULTILINE)
        )
        with (folder / "root/etc/edged/models.toml").open("a") as file:
            file.write(config)
        out = package.with_name(f"edged_{version}_{package.name.rpartition('_')[2]}")
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", compress, "-z1", "-b", folder / "root", out],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return out


@functools.cache
def _llama_wheel() -> Path:
    """Return the wheel for any CPU, or the one that pip keeps of what the tests run on."""
    lock = (ROOT / "requirements.lock").read_text()
    pinned = next(line for line in lock.split() if line.startswith("llama-cpp-python=="))
    name = f"llama_cpp_python-{pinned.partition('==')[2]}-*.whl"
    for house in (CACHE / "wheels", Path("~/.cache/edged-build/house").expanduser()):
        if there := sorted((house / "llama").glob(name)):
            return there[-1]
    folder = CACHE / "llama"
    shutil.rmtree(folder, ignore_errors=True)
    pip = [ROOT / ".venv/bin/python", "-m", "pip", "wheel", "--quiet", "--no-deps"]
    try:
        subprocess.run([*pip, "--wheel-dir", folder, pinned], check=True, timeout=60)
    except subprocess.SubprocessError:
        pytest.skip(
            "there is no wheel of llama.cpp, and compiling it takes 16 minutes: "
            "packaging/llama-wheel ~/.cache/edged-build/house"
        )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Build once; of the others only number and models.toml differ."""
    folder = tmp_path_factory.mktemp("deb")
    first = built(folder, "0.1.0~test1")
    return Packages(
        first,
        repacked(first, "0.1.0~test2"),
        repacked(first, "0.1.0~test3", config="# what the next version says\n"),
        next(folder.glob("edged-cuda_*.deb")),
    )


@pytest.fixture(scope="module", params=RELEASES)
def machine(request: pytest.FixtureRequest, packages: Packages) -> Iterator[Machine]:
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
