"""llama-server from the source of the installed engine, where `make bench` has built it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.models import cache_dir
from tests.models.source import llama_cpp_version

LIMIT_S = 60.0


@contextlib.contextmanager
def llama_server(model: Path, *options: str) -> Iterator[httpx.Client]:
    """Run it on one thread if it is built; a compile of ten minutes is not worth a test."""
    programs = sorted(cache_dir().glob(f"llama-server-{llama_cpp_version()}-*/llama-server"))
    if not programs:
        pytest.skip("llama-server is not built; `make bench` builds it")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = ("--port", str(port), "-np", "1", "-t", "1")
    process = subprocess.Popen(
        [str(programs[0]), "-m", str(model), *settings, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S, trust_env=False
        ) as client:
            end = time.monotonic() + LIMIT_S
            while not _ready(client):
                if process.poll() is not None or time.monotonic() > end:
                    pytest.skip(f"{programs[0]} does not start")
                time.sleep(0.05)
            yield client
    finally:
        process.kill()
        process.wait(LIMIT_S)


def _ready(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.ConnectError):
        return client.get("/health").status_code == httpx.codes.OK
    return False
