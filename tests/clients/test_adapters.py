"""Adapters come, change and go on a real daemon while streams run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.conftest import LIMIT_S, served
from tests.llamacpp.support import EDGE_GUIDE
from tests.models.lora import write_lora

MODELS_TOML = """
[server]
listen = ["127.0.0.1:{port}"]

[models.m]
gguf = "builtin:edge-guide"
load = "startup"
context = {context}
parallel = 6

[models.m.sampling]
temperature = 0.0

[models.m.llamacpp]
threads = 1  # two that spin at a barrier stand still on a busy box
"""


class Box:
    """One daemon, as its owner and its clients see it."""

    def __init__(self, folder: Path, http: httpx.AsyncClient) -> None:
        self.folder = folder
        self.http = http
        self.text = (folder / "models.toml").read_text()

    def save(self, *adapters: str) -> None:
        """Let the model have these adapters, whose files lie beside models.toml."""
        lines = [f'{name} = "file:{name}.gguf"' for name in adapters]
        new = self.folder / "models.toml.new"
        new.write_text("\n".join([self.text, "[models.m.llamacpp.lora]", *lines, ""]))
        new.replace(self.folder / "models.toml")

    async def model(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get("/status")).json()["models"][0]
        return found

    async def states(self) -> dict[str, str]:
        return {each["name"]: each["state"] for each in (await self.model())["adapters"]}

    async def ask(self, model: str = "m", n: int = 12, question: str = "What is edged?") -> str:
        body = {
            "model": model, "max_tokens": n, "ignore_eos": True,
            "messages": [{"role": "user", "content": question}],
        }  # fmt: skip
        response = await self.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        text: str = response.json()["choices"][0]["message"]["content"]
        return text

    async def begun(self, model: str) -> asyncio.Task[str]:
        """Begin a long answer; return when its first words are there."""
        begins = asyncio.Event()

        async def read() -> str:
            body = {
                "model": model, "max_tokens": 300, "ignore_eos": True, "stream": True,
                "messages": [{"role": "user", "content": "What is edged?"}],
            }  # fmt: skip
            text = ""
            async with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
                async for line in response.aiter_lines():
                    data = line.removeprefix("data: ")
                    if data in ("", "[DONE]"):
                        continue
                    chunk = json.loads(data)
                    assert "error" not in chunk, chunk
                    text += chunk["choices"][0]["delta"].get("content") or ""
                    if text:
                        begins.set()
            return text

        task = asyncio.create_task(read())
        async with asyncio.timeout(LIMIT_S):
            await begins.wait()
        return task

    async def refusal(self, model: str) -> tuple[int, str]:
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        response = await self.http.post("/v1/chat/completions", json=body)
        return response.status_code, response.json()["error"]["message"]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await condition():  # noqa: ASYNC110 - a state of another process
            await asyncio.sleep(0.05)


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    with served(tmp_path, MODELS_TOML) as url:
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S, trust_env=False) as http:
            yield Box(tmp_path, http)


async def test_adapters_are_reloaded_under_load(box: Box) -> None:
    base, over = await box.ask(n=30), False
    before = await box.model()

    async def keep_asking() -> int:
        n = 0
        while not over:
            assert await box.ask(n=30) == base, "another one's adapter, or another version"
            n += 1
        return n

    load = [asyncio.create_task(keep_asking()) for _ in range(2)]

    async def reloaded(*adapters: str, **states: str) -> None:
        box.save(*adapters)
        await until(lambda: same(states))

    async def same(states: dict[str, str]) -> bool:
        return await box.states() == states

    # one comes
    write_lora(box.folder / "one.gguf", EDGE_GUIDE, 1, strength=1.0)
    await reloaded("one", one="ready")
    first = await box.ask("m:one")
    assert first != await box.ask()
    # another one comes, while the first one writes
    stream = await box.begun("m:one")
    write_lora(box.folder / "two.gguf", EDGE_GUIDE, 2, strength=1.0)
    await reloaded("one", "two", one="ready", two="ready")
    assert await box.ask("m:two") not in (first, await box.ask())
    # one changes, while it writes; a file moved into its place is a change of the box alone
    second = await box.begun("m:one")
    write_lora(box.folder / "new.gguf", EDGE_GUIDE, 3, strength=1.0)
    (box.folder / "new.gguf").replace(box.folder / "one.gguf")
    os.kill(await daemon_of(box), signal.SIGHUP)
    await until(lambda: changed(box, first))
    # one leaves
    await reloaded("two", two="ready")
    assert await box.refusal("m:one") == (404, "model 'm' has no adapter 'one'; it has: two")
    assert (await stream).startswith(first)
    assert (await second).startswith(first), "it ends with the version that it began with"
    # a broken one takes nobody with it
    (box.folder / "bad.gguf").write_bytes((box.folder / "two.gguf").read_bytes()[:-5000])
    await reloaded("two", "bad", two="ready", bad="failed")
    status, message = await box.refusal("m:bad")
    assert (status, "bad.gguf is truncated" in message) == (503, True)
    assert await box.ask("m:two")
    over = True
    assert min(await asyncio.gather(*load)) > 0
    after = await box.model()
    assert (after["pid"], after["restarts"]) == (before["pid"], 0), "the same worker all the time"


async def changed(box: Box, old: str) -> bool:
    return await box.ask("m:one") != old


async def daemon_of(box: Box) -> int:
    return int((await box.http.get("/status")).json()["pid"])
