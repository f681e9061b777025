"""`packaging/make-repo` makes what apt trusts, and nothing else is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance.conftest import RELEASES, ROOT, Packages
from tests.appliance.machine import CACHE, Machine, booted, scratch
from tests.appliance.recipes import documented


@pytest.fixture(scope="module")
def repository(packages: Packages) -> Iterator[Path]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with scratch() as folder:
        home = folder / "gnupg"  # its socket's path must be short, so not in pytest's folder
        subprocess.run(
            [
                ROOT / "packaging/make-repo",
                folder / "repo",
                "stable",
                packages.first,
                packages.second,
            ],
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
        found.push(repository / "edged-archive-keyring.gpg", "/root")
        yield found


def test_tampered_index_is_refused_and_the_true_one_installs(machine: Machine) -> None:
    """With the commands of docs/operations.md, first on an index that somebody has changed."""
    install = documented("Install", 1, repository="file:///srv/repo")
    index = machine.sh("ls /srv/repo/dists/stable/main/binary-*/Packages")
    machine.sh(f"cp {index} /root/true; rm {index}.gz; sed -i 's/^Section: .*/Section: x/' {index}")
    refused = machine.run("sh", "-c", install, ok=False)
    assert refused.returncode != 0
    assert "unexpected size" in refused.stdout or "Hash Sum mismatch" in refused.stdout
    assert machine.run("apt-get", "install", "-y", "edged", ok=False).returncode != 0
    machine.sh(f"cp /root/true {index}; gzip -9nk {index}")
    machine.sh(install, limit_s=300)
    assert "test2" in machine.sh("dpkg-query -W edged")
    machine.until("systemctl is-active edged")


def test_foreign_signature_is_refused(machine: Machine) -> None:
    """Debian 13's apt succeeds with a warning then, and goes on with the list that it has."""
    machine.sh(
        "cp /usr/share/keyrings/debian-archive-keyring.gpg "
        "/usr/share/keyrings/edged-archive-keyring.gpg; rm -rf /var/lib/apt/lists/*; "
        "apt-get purge -y edged"
    )
    refused = machine.run("apt-get", "update", ok=False)
    assert re.search("NO_PUBKEY|not signed|Missing key", refused.stdout), refused.stdout
    assert machine.run("apt-get", "install", "-y", "edged", ok=False).returncode != 0
    assert machine.run("dpkg-query", "-W", "edged", ok=False).returncode != 0
