"""A real daemon on edge-guide, as its own process on a random port, for foreign clients."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import httpx
import openai
import pytest

START_LIMIT_S = 240.0
LIMIT_S = 60.0
CONTEXT = 1024
EDGED_SERVE = (sys.executable, "-m", "edged", "serve", "--config")

MODELS_TOML = """
[server]
listen = ["127.0.0.1:{port}"]
max_body = "1MiB"

[models.edge-guide]
gguf = "builtin:edge-guide"
load = "startup"
context = {context}
parallel = 8
aliases = ["gpt-4o-mini", "Qwen/Qwen3-8B"]

[models.edge-guide.sampling]
temperature = 0.0
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of a daemon that serves edge-guide."""
    with served(tmp_path_factory.mktemp("daemon"), MODELS_TOML) as url:
        yield url


@contextlib.contextmanager
def served(folder: Path, models_toml: str, command: Sequence[str] = EDGED_SERVE) -> Iterator[str]:
    """Run `edged serve` until it is ready, give its URL; SIGTERM must end it with 0."""
    pytest.importorskip("llama_cpp", reason="the llama.cpp engine is not installed")
    port = free_port()
    config = folder / "models.toml"
    config.write_text(models_toml.format(port=port, context=CONTEXT))
    log = folder / "log"
    environment = os.environ | {
        "XDG_STATE_HOME": str(folder),
        "XDG_CACHE_HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
    }
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, str(config)],
            stderr=sink,
            stdout=sink,
            env=environment,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url, process, log)
        yield url
    finally:
        process.terminate()
        code = process.wait(LIMIT_S)
    assert code == 0, log.read_text()
    assert "fault" not in log.read_text()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    def ready() -> bool:
        if process.poll() is not None:
            _fail(f"edged ended with {process.returncode}", log)
        try:
            reply = httpx.get(f"{url}/ready", trust_env=False)
        except httpx.ConnectError:
            return False
        for line in reply.json().get("waiting_for", ()):
            if " is failed" in line:
                _fail(line, log)
        return reply.status_code == httpx.codes.OK

    if not eventually(ready, START_LIMIT_S):
        _fail(f"edged is not ready after {START_LIMIT_S} s", log)


def _fail(reason: str, log: Path) -> NoReturn:
    last = "\n".join(log.read_text().splitlines()[-20:])
    pytest.fail(f"{reason}\n{last}", pytrace=False)


def eventually(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> bool:
    """Return whether `condition` came true within the limit."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def raw(daemon: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=daemon, timeout=LIMIT_S, trust_env=False) as client:
        yield client


@pytest.fixture
def sdk(daemon: str) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(
        base_url=f"{daemon}/v1", api_key="none", max_retries=0, timeout=LIMIT_S, http_client=http
    ) as client:
        yield client
