"""Prefixes over the end of a worker, with the real daemon and the real engine."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.daemon.appliance import Appliance, closing, needs_engine
from tests.daemon.support import PATIENCE_S, is_alive, until
from tests.llamacpp.support import EDGE_GUIDE

pytestmark = needs_engine

SYSTEM = "You are the guide of a small box. Answer in one sentence, and name the file. " * 12


class Box(Appliance):
    """One real model, with a cache folder beside its configuration."""

    def gguf(self, name: str) -> Path:  # noqa: ARG002 - one file for all
        return EDGE_GUIDE

    @property
    def env(self) -> dict[str, str]:
        folders = {"XDG_CACHE_HOME": str(self.folder / "cache"), "CACHE_DIRECTORY": ""}
        return folders | {"EDGED_LOG": "info"}

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("cache/edged/prefixes/**/*.kv"))

    async def up(self) -> None:
        (self.folder / "log").unlink(missing_ok=True)
        await self.start(env=self.env, real=True)
        await self.until_logged("daemon.serving")

    async def cached_tokens(self, question: str) -> int:
        body = {
            "model": "a",
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": question},
            ],
            "max_tokens": 2,
        }
        answer = await self.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


@asynccontextmanager
async def real(folder: Path, *models: str) -> AsyncIterator[Box]:
    box = Box(folder)
    box.write(*models)
    await box.up()
    async with closing(box):
        yield box


LARGE = "context = 1024; parallel = 2"


async def test_prefix_survives_restart_replacement_and_unload(tmp_path: Path) -> None:
    async with real(tmp_path, f"a {LARGE}") as box:
        assert await box.cached_tokens("What is edged?") == 0
        pid = (await box.model("a"))["pid"]
        # Replaced: another batch size is another launch, and the same key. The new worker starts
        # beside the old one, which saves what it has when it leaves.
        box.write(f"a {LARGE}; llamacpp = {{ batch = 256 }}")
        await box.until_logged("config.applied")
        async with asyncio.timeout(PATIENCE_S):
            while (await box.model("a"))["pid"] == pid:
                pass
        await until(lambda: not is_alive(pid))
        assert await box.cached_tokens("Where are the logs?") > 100
        assert await box.stop() == 0
        assert box.files
        await box.up()
        assert await box.cached_tokens("How do I add a model?") > 100
        box.write(f"a {LARGE}; llamacpp = {{ batch = 256 }}; idle_unload = '1s'")
        await box.until_model("a", state="stopped")
        assert await box.cached_tokens("What is a model?") > 100


async def test_kill_leaves_nothing_torn_in_use(tmp_path: Path) -> None:
    async with real(tmp_path, f"a {LARGE}") as box:
        await box.cached_tokens("What is edged?")
        assert await box.stop() == 0
        (saved,) = box.files
        await box.up()
        assert await box.cached_tokens("Where are the logs?") > 100
        (worker,) = box.workers()
        os.kill(worker, signal.SIGTERM)  # it saves; and before it is done:
        os.kill(worker, signal.SIGKILL)
        box.process.kill()
        await box.exit()
        await until(lambda: not is_alive(worker))
        with saved.open("r+b") as file:  # as a power cut may leave it
            file.truncate(saved.stat().st_size - 5000)
        await box.up()
        assert await box.cached_tokens("How do I add a model?") == 0
        await box.until_logged("prefixes.unreadable")
        assert await box.stop() == 0
        assert len(list((tmp_path / "cache").glob("**/*.tmp"))) == 0
        assert len(box.files) == 1


async def test_switched_off_there_is_no_file(tmp_path: Path) -> None:
    async with real(tmp_path, f"a {LARGE}; llamacpp = {{ prefix_cache = '0' }}") as box:
        await box.cached_tokens("What is edged?")
        assert await box.stop() == 0
        assert not (tmp_path / "cache").exists()
