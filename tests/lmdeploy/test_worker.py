"""The daemon's side of a worker that runs in LMDeploy's environment; no GPU, no inference."""

import subprocess
import sys
from pathlib import Path

import pytest

from edged.protocol import (
    Delta,
    Finish,
    Generate,
    Launch,
    LlamaCppLaunch,
    LmdeployLaunch,
    Messages,
)
from edged.supervisor.lifecycle import Limits
from edged.supervisor.worker_process import WORKER_ARGV, BadModelError, WorkerProcess
from tests.lmdeploy import environment
from tests.models.cache import UnavailableError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """LMDeploy's interpreter with this edged, as `edged setup-cuda` links it there."""
    try:
        own = environment.python()
    except UnavailableError as error:
        pytest.skip(str(error))
    script = tmp_path_factory.mktemp("python") / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{own}" "$@"\n')
    script.chmod(0o755)
    return str(script)


@pytest.fixture(scope="module")
def folder(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    subprocess.run(
        [python, "-m", "tests.lmdeploy.contract.worker", str(path)], check=True, timeout=120
    )
    return path


def launch(folder: Path, python: str) -> Launch:
    settings = LmdeployLaunch(python, (0,), 1 << 20, 1 << 20)
    return Launch("tiny", "lmdeploy", str(folder), "1", 256, 2, 512, lmdeploy=settings)


async def test_worker_of_the_environment_answers(python: str, folder: Path) -> None:
    argv = (python, "-m", "tests.lmdeploy.contract.worker")
    worker = WorkerProcess(launch(folder, python), argv, limits=Limits(load_silence_s=100))
    try:
        ready = await worker.start()
        assert ready.build == "lmdeploy 0.18.0 turbomind"
        prompt = Messages([{"role": "user", "content": "hi"}])
        events = [event async for event in worker.generate(Generate(prompt))]
        text = "".join(event.content for event in events if isinstance(event, Delta))
        assert text == "Grüße from a played engine"
        assert isinstance(events[-1], Finish)
    finally:
        await worker.stop("done")
    assert worker.exit is not None
    assert worker.exit.returncode == 0


async def test_worker_without_cuda_says_what_mends_it(python: str, folder: Path) -> None:
    """The launch names the interpreter; the daemon's own has no LMDeploy at all."""
    worker = WorkerProcess(launch(folder, python), limits=Limits(load_silence_s=100))
    try:
        with pytest.raises(BadModelError, match=r"native module does not load.*setup-cuda"):
            await worker.start()
    finally:
        await worker.stop("done")


def test_interpreter_follows_the_launch() -> None:
    own = WorkerProcess(launch(Path("/m"), "/cuda/bin/python"))
    assert own._own_argv() == ("/cuda/bin/python", *WORKER_ARGV[1:])
    plain = Launch("a", "llamacpp", "/a", "1", 64, 1, 64, llamacpp=LlamaCppLaunch(1, 1))
    assert WorkerProcess(plain)._own_argv()[0] == sys.executable
    fake = ("/fake", "worker")
    assert WorkerProcess(launch(Path("/m"), "/cuda/bin/python"), fake)._own_argv() == fake
