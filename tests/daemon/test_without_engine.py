"""A daemon on a machine where llama-cpp-python is not installed."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import httpx
import litestar
import pytest

from tests.daemon.appliance import ROOT, free_port
from tests.daemon.support import PATIENCE_S

SITE = Path(litestar.__file__).parent.parent


@pytest.fixture
def site_without_engine(tmp_path: Path) -> Path:
    """Return a folder with every installed package but the engine, by links."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in SITE.iterdir():
        if not entry.name.startswith(("llama_cpp", "edged")):
            (site / entry.name).symlink_to(entry)
    return site


async def test_daemon_serves_what_it_can_and_says_what_is_missing(
    tmp_path: Path, site_without_engine: Path
) -> None:
    port = free_port()
    config = tmp_path / "models.toml"
    config.write_text(
        f'[server]\nlisten = ["127.0.0.1:{port}"]\n'
        '[models.edge-guide]\ngguf = "builtin:edge-guide"\nload = "startup"\n'
    )
    with (tmp_path / "log").open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-S", "-m", "edged", "serve", "--config", str(config)),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": f"{site_without_engine}:{ROOT}"},
            stdout=sink,
            stderr=sink,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(int(PATIENCE_S / 0.1)):
                assert process.returncode is None, (tmp_path / "log").read_text()
                try:
                    assert (await client.get("/health")).status_code == httpx.codes.OK
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.1)
            assert (await client.get("/v1/models")).json()["data"][0]["id"] == "edge-guide"
            model = (await client.get("/status")).json()["models"][0]
            assert model["state"] == "failed"
            assert "llama-cpp-python" in model["error"]
            body = {"model": "edge-guide", "messages": [{"role": "user", "content": "hello"}]}
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
            assert answer.json()["error"]["code"] == "model_failed"
            assert "llama-cpp-python" in answer.json()["error"]["message"]
    finally:
        if process.returncode is None:
            process.terminate()
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
