"""`packaging/make-repo` makes what apt trusts, and nothing else is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance.conftest import RELEASES, ROOT, Packages
from tests.appliance.machine import CACHE, Machine, booted, scratch

SOURCE = """Types: deb
URIs: file:///srv/repo
Suites: stable
Components: main
Signed-By: /usr/share/keyrings/edged-archive-keyring.gpg
"""


@pytest.fixture(scope="module")
def repository(packages: Packages) -> Iterator[Path]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with scratch() as folder:
        home = folder / "gnupg"  # its socket's path must be short, so not in pytest's folder
        subprocess.run(
            [ROOT / "packaging/make-repo", folder / "repo", "stable", *packages[:2]],
            env=os.environ | {"GNUPGHOME": str(home)},
            check=True,
            capture_output=True,
        )
        yield folder / "repo"
        subprocess.run(
            ["gpgconf", "--homedir", home, "--kill", "all"], check=False, capture_output=True
        )


@pytest.fixture(scope="module")
def machine(repository: Path) -> Iterator[Machine]:
    with booted(RELEASES[-1], name="edgedrepo") as found:
        found.hurry()
        shutil.copytree(repository, found.path("/srv/repo"))
        found.push(repository / "edged-archive-keyring.gpg", "/usr/share/keyrings")
        found.path("/etc/apt/sources.list.d/edged.sources").write_text(SOURCE)
        yield found


def test_tampered_index_is_refused_and_the_true_one_installs(machine: Machine) -> None:
    index = machine.sh("ls /srv/repo/dists/stable/main/binary-*/Packages")
    machine.sh(f"cp {index} /root/true; rm {index}.gz; sed -i 's/^Section: .*/Section: x/' {index}")
    refused = machine.run("apt-get", "update", ok=False)
    assert refused.returncode != 0
    assert "unexpected size" in refused.stdout or "Hash Sum mismatch" in refused.stdout
    assert machine.run("apt-get", "install", "-y", "edged", ok=False).returncode != 0
    machine.sh(f"cp /root/true {index}; gzip -9nk {index}")
    machine.sh("apt-get update && apt-get install -y edged", limit_s=300)
    assert "test2" in machine.sh("dpkg-query -W edged")
    machine.until("systemctl is-active edged")


def test_foreign_signature_is_refused(machine: Machine) -> None:
    machine.sh(
        "cp /usr/share/keyrings/debian-archive-keyring.gpg "
        "/usr/share/keyrings/edged-archive-keyring.gpg"
    )
    refused = machine.run("apt-get", "update", ok=False)
    assert "NO_PUBKEY" in refused.stdout or "not signed" in refused.stdout or refused.returncode
