"""The package as a file."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.appliance.conftest import Packages, built, repacked


def test_same_input_gives_the_same_bytes(packages: Packages, tmp_path: Path) -> None:
    """Built again: later, elsewhere, under another umask and with another order of languages."""
    before = os.umask(0o077)
    try:
        elsewhere = {"TMPDIR": str(tmp_path), "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo"}
        again = built(tmp_path, "0.1.0~test1", **elsewhere)
    finally:
        os.umask(before)
    assert _digest(again) == _digest(packages.first)
    cuda = tmp_path / packages.cuda.name
    assert _digest(cuda) == _digest(packages.cuda)
    print(f"\n{packages.first.name}: {packages.first.stat().st_size / 1e6:.1f} MB (zstd)")


@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not installed")
def test_lintian_has_nothing_to_say(packages: Packages) -> None:
    # Debian 12's lintian cannot read zstd.
    plain = repacked(packages.first, "0.1.0~lintian", compress="-Zgzip")
    cuda = _recompressed(packages.cuda)
    began = time.monotonic()
    done = subprocess.run(
        ["lintian", "--fail-on", "error,warning,info", "--allow-root", plain, cuda],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    plain.unlink()
    said = [line for line in done.stdout.splitlines() if not line.startswith(("N:", "O:"))]
    assert said == [], done.stdout
    assert done.returncode == 0, done.stderr
    print(f"\nlintian: {time.monotonic() - began:.0f} s")


def _recompressed(package: Path) -> Path:
    folder = package.parent / "cuda"
    subprocess.run(["dpkg-deb", "-R", package, folder], check=True)
    out = package.parent / "plain.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "-b", folder, out],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return out


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
