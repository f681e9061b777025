"""Pulls as processes of their own: killed at any byte, and two at a time."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

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
        until(lambda: hub.bodies() and hub.bodies()[0].sent >= upto, "no bytes arrive")  # noqa: B023
        process.kill()
        process.communicate(timeout=PATIENCE_S)
        parts = list((tmp_path / "store").rglob("*.part"))
        assert not list((tmp_path / "store").rglob("*.gguf"))
        had = parts[0].stat().st_size if parts else 0
    assert had > 0
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
