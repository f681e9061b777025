"""Some of tests/gpu and its benchmark on a played GPU: whether they run, and nothing else.

All of it: `python -m tests.gpu.played.box FOLDER tests/gpu/run` (with WHEELS it needs no network).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.played import box as played
from tests.models.cache import UnavailableError

ROOT = Path(__file__).parents[2]
CHECKS = "guided or refused_at_load or gives_its_memory_back"


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a command sees on the box; LMDeploy is lent to edged as by tests/gpu/run."""
    folder = tmp_path_factory.mktemp("box")
    try:
        made = os.environ | played.write(folder) | {"STATE_DIRECTORY": str(folder / "state")}
    except UnavailableError as error:
        pytest.skip(str(error))
    run(made, "-m", "tests.gpu.borrowed", made["LMDEPLOY_PYTHON"], made["STATE_DIRECTORY"])
    return made


def run(env: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not done.returncode, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.timeout(330)
def test_checks_run(env: dict[str, str]) -> None:
    said = run(env, "-m", "pytest", "-c", "tests/gpu/pytest.ini", "tests/gpu", "-q", "-k", CHECKS)
    assert "3 passed" in said


@pytest.mark.timeout(330)
def test_benchmark_runs(env: dict[str, str], tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    few = ("--pairs", "1", "--tokens", "8", "--clients", "1,4")
    table = run(env, "-m", "tests.gpu.bench", *few, "--json", str(report))
    assert "## 4 clients" in table
    said = json.loads(report.read_text())
    assert said["gpu"] == "NVIDIA H200 (played)"
    assert set(said["clients"]) == {"1", "4"}
    for sides in said["clients"].values():
        assert set(sides) == {"edged", "api_server", "pipeline"}
        assert all(len(rounds) == 2 for rounds in sides.values())
        assert all(each["tokens_per_s"] > 0 for rounds in sides.values() for each in rounds)
