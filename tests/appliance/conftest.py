"""The package is built once, the machine booted once for each release."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance.machine import CACHE, GUEST_IP, Machine, booted, obstacle, scratch, sweep

ROOT = Path(__file__).parent.parent.parent
OBSTACLE = obstacle()
RELEASES = os.environ.get("EDGED_TEST_RELEASES", "bookworm trixie").split()
# In CI (tests/appliance/in-ci): the package for the Python of the one release only.
IN_CI = "EDGED_APPLIANCE_IN_CI" in os.environ
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if OBSTACLE and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=OBSTACLE))


@pytest.fixture(scope="session", autouse=True)
def _boots() -> Iterator[None]:
    """Skip everything, with the reason, where a machine cannot do what all tests rely on."""
    _llama_wheel()  # quick to tell, where making a root file system is not
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "turn").open("w") as turn:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.skip("another run has the names and addresses of these machines")
        sweep()
        try:
            with booted(RELEASES[0], name="edgedprobe", network="veth") as machine:
                _probe(machine)
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            reason = f"{error} {getattr(error, 'stderr', None) or ''}"
            pytest.skip(f"a system cannot be booted here: {' '.join(reason.split())[:300]}")
        yield


def _probe(machine: Machine) -> None:
    """Raise OSError or AssertionError unless wire and sandbox work, without edged's help."""
    with contextlib.suppress(ConnectionRefusedError):  # so somebody is there
        socket.create_connection((GUEST_IP, 9), timeout=10).close()
    # The unit with another program: what it locks must be possible here, as on any Debian.
    others = "Exec|Type|User|Group|Restart|Watchdog|NotifyAccess|WantedBy|Also|Requires|After"
    unit = (ROOT / "systemd/edged.service").read_text()
    kept = re.sub(rf"^({others})\w*=.*\n", "", unit, flags=re.MULTILINE)
    service = "[Service]\nType=oneshot\nUser=nobody\nExecStart=/bin/true\n"
    machine.path("/run/systemd/system/probe.service").write_text(
        kept.replace("[Service]\n", service)
    )
    machine.sh(
        "systemctl daemon-reload; systemctl start probe || { journalctl -u probe -o cat; exit 1; }"
    )


class Packages:
    """What the tests install, each made when it is asked for first."""

    def __init__(self, folder: Path) -> None:
        self.first = built(folder, "0.1.0~test1")

    @functools.cached_property
    def second(self) -> Path:
        """The next version; nothing else differs."""
        return renamed(self.first, "0.1.0~test2")

    @functools.cached_property
    def asking(self) -> Path:
        """The one after it, with another models.toml."""
        return repacked(self.first, "0.1.0~test3", config="# what the next version says\n")

    @property
    def cuda(self) -> Path:
        """The package for NVIDIA's devices."""
        return next(self.first.parent.glob("edged-cuda_*.deb"))


def built(folder: Path, version: str, **environment: str) -> Path:
    """Build the package as `make deb` does, quickly: with the llama.cpp that is there already."""
    pythons, house = "3.11 3.12 3.13", CACHE / "wheels"
    if IN_CI:
        pythons, house = PYTHONS[RELEASES[0]], CACHE / f"wheels-{RELEASES[0]}"
    _fill(house, pythons)
    done = subprocess.run(
        [ROOT / "packaging/make-deb", folder],
        env=os.environ
        | {
            "COMPRESS": "zstd",
            "VERSION": version,
            "LLAMA_WHEEL": str(_llama_wheel()),
            "HOUSE": str(house),
            "PYTHONS": pythons,
        }
        | environment,
        check=False,
        timeout=600,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob(f"edged_{version}_*.deb"))


def _fill(house: Path, pythons: str) -> None:
    """Fetch the wheels that the package is made of, as its builder would; skip without them."""
    command = [ROOT / "packaging/wheelhouse", house, pythons]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().rpartition("\n")[2]
        pytest.skip(f"pip's index does not give the package's wheels here: {reason}")
    except subprocess.TimeoutExpired:
        pytest.skip("pip's index does not give the package's wheels within five minutes")


def renamed(package: Path, version: str) -> Path:
    """Return the same package with another version, quickly: what it installs is not touched."""
    out = package.with_name(f"edged_{version}_{package.name.rpartition('_')[2]}")
    shutil.copy(package, out)
    with scratch() as folder:
        subprocess.run(["dpkg-deb", "-e", package, folder / "control"], check=True)
        _set_version(folder / "control/control", version)
        listed = subprocess.run(["ar", "t", out], check=True, capture_output=True, text=True)
        _, control, data = listed.stdout.split()
        # gzip, which every system has; dpkg does not mind
        for command in (
            ["tar", "--owner=root", "--group=root", "-czf", "control.tar.gz", "-C", "control", "."],
            ["ar", "dD", out, control],
            ["ar", "rDb", data, out, "control.tar.gz"],
        ):
            subprocess.run(command, cwd=folder, check=True)
    return out


def _set_version(control: Path, version: str) -> None:
    text = re.sub(r"^Version: .*$", f"Version: {version}", control.read_text(), flags=re.MULTILINE)
    control.write_text(text)


def repacked(package: Path, version: str, *, config: str = "", compress: str = "-Zzstd") -> Path:
    """Return the same package with another version, and something after its models.toml."""
    with scratch() as folder:
        subprocess.run(["dpkg-deb", "-R", package, folder / "root"], check=True)
        _set_version(folder / "root/DEBIAN/control", version)
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
    name = f"llama_cpp_python-{pinned.partition('==')[2]}"
    for house in (CACHE / "wheels", Path("~/.cache/edged-build/house").expanduser()):
        if there := sorted((house / "llama").glob(f"{name}-*.whl")):
            return there[-1]
    kept = subprocess.run(
        [ROOT / ".venv/bin/python", "-m", "pip", "cache", "list", name, "--format=abspath"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if kept.stdout.split():
        return Path(kept.stdout.split()[-1])
    pytest.skip(
        "there is no wheel of llama.cpp, neither of ours nor in pip's cache, and compiling it "
        "takes 16 minutes: packaging/llama-wheel ~/.cache/edged-build/house"
    )


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return Packages(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module", params=RELEASES)
def machine(request: pytest.FixtureRequest, packages: Packages) -> Iterator[Machine]:
    """A machine of each release, with a wire to us and nothing installed."""
    assert packages.first  # before the boot: where it cannot be built there is no need of one
    with booted(request.param, name="edgedtest", network="veth") as found:
        yield found


def install(machine: Machine, package: Path) -> float:
    """Install a package file without any network; return how long it took, in s."""
    machine.push(package, "/root")
    began = time.monotonic()
    machine.sh(f"apt-get install -y /root/{package.name}", limit_s=300)
    return time.monotonic() - began
