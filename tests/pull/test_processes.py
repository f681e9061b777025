"""Pulls as processes of their own: killed at any byte, and two at a time."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.hub import Hub
from tests.pull.support import REPOSITORY, weights

PATIENCE_S = 60.0


def start(folder: Path) -> subprocess.Popen[str]:
    config = folder / "models.toml"
    if not config.exists():
        store = f'[store]\nfolder = "{folder}/store"\n'
        config.write_text(f'{store}[models.m]\ngguf = "hf:{REPOSITORY}"\n')
    return subprocess.Popen(
        [sys.executable, "-m", "edged.pull", "--config", str(config), "m"],
        stdout=subprocess.PIPE,
        text=True,
    )


def until(condition: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.002)


def last_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=PATIENCE_S)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def on_disk(folder: Path) -> int:
    """Return the bytes that the part of a file holds."""
    return sum(part.stat().st_size for part in (folder / "store").rglob("*.part"))


def test_killed_at_random_bytes_and_resumed_is_identical(hub: Hub, tmp_path: Path) -> None:
    content = weights(kib=2048)
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": content})
    dice = random.Random(8)
    had = 0
    for _ in range(6):
        hub.requests.clear()
        # the server stops there, so that the moment of the kill is certain
        upto = dice.randrange(1, (len(content) - had) // 3)
        hub.cuts = [upto]
        process = start(tmp_path)
        until(lambda: on_disk(tmp_path) == had + upto, "the bytes do not arrive")  # noqa: B023
        process.kill()
        process.communicate(timeout=PATIENCE_S)
        assert not list((tmp_path / "store").rglob("*.gguf"))
        had += upto
        assert on_disk(tmp_path) == had
    hub.requests.clear()
    process = start(tmp_path)
    assert last_line(process) == {"type": "ended", "error": None, "passing": False}
    assert process.returncode == 0
    (found,) = (tmp_path / "store").rglob("*.gguf")
    assert found.read_bytes() == content
    assert hub.bodies()[0].headers["range"] == f"bytes={had}-"


def test_two_processes_fetch_the_same_once(hub: Hub, tmp_path: Path) -> None:
    content = weights(kib=512)
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": content})
    hub.gate = threading.Event()
    first = start(tmp_path)
    until(lambda: hub.bodies() and hub.bodies()[0].sent, "no bytes arrive")
    second = start(tmp_path)
    assert second.stdout is not None
    for line in second.stdout:
        if "another process fetches it" in line:
            break
    hub.gate.set()
    assert last_line(first)["error"] is None
    assert last_line(second)["error"] is None
    assert len(hub.bodies()) == 1
    assert hub.bodies()[0].sent == len(content)


def test_failure_is_told_with_whether_it_may_pass(hub: Hub, tmp_path: Path) -> None:
    process = start(tmp_path)
    said = last_line(process)
    assert "has no repository" in said["error"]
    assert said["passing"] is False
    assert process.returncode == 1
    assert not hub.bodies()


FULL_DISK = """
set -e
mount -t tmpfs -o size=72m tmpfs "$STORE"
"$PYTHON" -m edged.pull --config "$OLD" m >/dev/null
cp "$STORE/models.lock" "$OUT/before"
"$PYTHON" -m edged.pull --config "$NEW" m >"$OUT/said" &
while ! ls "$STORE"/hf/*/*/*/N-*.part >/dev/null 2>&1; do sleep 0.02; done
head -c 100m /dev/zero >"$STORE/filler" 2>/dev/null || true
touch "$OUT/full"
wait || true
cp "$STORE/models.lock" "$OUT/after"
find "$STORE" -name '*.gguf' >"$OUT/there"
rm "$STORE/filler"
"$PYTHON" -m edged.pull --config "$NEW" m | tail -1 >"$OUT/again"
find "$STORE" -name 'N-*.gguf' -exec cp {} "$OUT/whole" ";"
"""


def unshared(script: str) -> list[str]:
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]


def test_full_disk_leaves_the_old_state_and_goes_on_later(hub: Hub, tmp_path: Path) -> None:
    mounts = subprocess.run(unshared("mount -t tmpfs x /mnt"), capture_output=True, check=False)
    if mounts.returncode:
        pytest.skip("this machine lets nobody mount a disk of its own")
    content = weights("Q8_0", kib=3072)
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights(), "N-Q8_0.gguf": content})
    store = tmp_path / "store"
    store.mkdir()
    for name in ("Q4_K_M", "Q8_0"):
        (tmp_path / f"{name}.toml").write_text(
            f'[store]\nfolder = "{store}"\n[models.m]\ngguf = "hf:{REPOSITORY}:{name}"\n'
        )
    environment = {
        "STORE": str(store),
        "OUT": str(tmp_path),
        "PYTHON": sys.executable,
        "OLD": str(tmp_path / "Q4_K_M.toml"),
        "NEW": str(tmp_path / "Q8_0.toml"),
    }
    hub.bytes_per_s = 256_000  # until the disk is full, so that it surely is in the middle
    process = subprocess.Popen(unshared(FULL_DISK), env=os.environ | environment)
    try:
        until((tmp_path / "full").exists, "the disk does not become full")
        hub.bytes_per_s = None
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
    said = json.loads((tmp_path / "said").read_text().splitlines()[-1])
    assert "is full; what has arrived stays there" in said["error"]
    assert (tmp_path / "after").read_bytes() == (tmp_path / "before").read_bytes()
    assert "M-Q4_K_M.gguf" in (tmp_path / "there").read_text()
    assert "N-Q8_0.gguf" not in (tmp_path / "there").read_text()
    assert json.loads((tmp_path / "again").read_text())["error"] is None
    assert (tmp_path / "whole").read_bytes() == content
    assert int(hub.bodies()[-1].headers["range"].removeprefix("bytes=").rstrip("-")) > 0
