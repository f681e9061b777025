"""A whole daemon as a process of its own, on fake workers, with its models.toml in a folder."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.daemon.support import PATIENCE_S, is_alive, until
from tests.models.tiny import tiny

ROOT = Path(__file__).parent.parent.parent

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="without llama-cpp-python every model is refused before a worker starts",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Appliance:
    """One daemon. Models are written as TOML tables; their files are tiny real GGUFs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "models.toml"
        self.port = free_port()
        self.process: asyncio.subprocess.Process
        self.client = self.new_client()
        self._log = folder / "log"

    def new_client(self, **keys: Any) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            timeout=PATIENCE_S,
            limits=limits,
            trust_env=False,
            **keys,
        )

    # ── models.toml ──

    def toml(self, *models: str, listen: str = "") -> str:
        """Return a configuration; a model is "NAME [--HOW] [KEY = VALUE; …]"."""
        listen = listen or f'"127.0.0.1:{self.port}"'
        text = (
            f"[server]\nlisten = [{listen}]\n[defaults]\ncontext = 64\nparallel = 4\nqueue = 64\n"
        )
        for line in models:
            head, _, settings = line.partition(" ")
            name = head.partition("--")[0]
            text += f'[models.{name}]\ngguf = "file:{self.gguf(head)}"\n'
            text += settings.replace(";", "\n") + "\n"
        return text

    def gguf(self, name: str) -> Path:
        path = self.folder / f"{name}.gguf"
        if not path.exists():
            shutil.copy(tiny("plain"), path)
        return path

    def write(self, *models: str, **keys: str) -> None:
        """Save the configuration as editors do: a new file in the place of the old."""
        self.save(self.toml(*models, **keys))

    def save(self, text: str) -> None:
        new = self.config.with_name(".models.toml.swp")
        new.write_text(text)
        new.replace(self.config)

    # ── the process ──

    async def start(
        self,
        *,
        finish_s: float = 20,
        env: dict[str, str] | None = None,
        listening: socket.socket | None = None,
        real: bool = False,
    ) -> None:
        """Start it; `listening` is handed over as systemd does, at descriptor 3.

        `real`: with the worker that loads models.
        """
        command = [sys.executable, "-m", "tests.daemon.serve", str(self.config), str(finish_s)]
        command += ["real"] if real else []
        fds: tuple[int, ...] = ()
        if listening is not None:
            fds = (listening.fileno(),)
            shell = f'LISTEN_FDS=1 LISTEN_FDNAMES=http LISTEN_PID=$$ exec "$@" 3<&{fds[0]}'
            command = ["bash", "-c", shell, "bash", *command]
        with self._log.open("ab") as sink:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                pass_fds=fds,
                cwd=ROOT,
                env=os.environ | {"RUNTIME_DIRECTORY": str(self.folder)} | (env or {}),
                stdout=sink,
                stderr=sink,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def until_logged(self, text: str) -> None:
        def there() -> bool:
            assert self.process.returncode is None, self.log
            return text in self.log

        await until(there, lambda: f"{text!r} in\n{self.log}")

    async def exit(self) -> int:
        return await asyncio.wait_for(self.process.wait(), PATIENCE_S)

    async def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.exit()

    def workers(self) -> list[int]:
        """Return the daemon's children that live."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children if is_alive(int(pid))]

    # ── as its operator ──

    @property
    def admin_socket(self) -> Path:
        return self.folder / "admin.sock"

    def admin(self) -> httpx.AsyncClient:
        """Return a client of the admin socket; the caller closes it."""
        return httpx.AsyncClient(
            base_url="http://edged",
            transport=httpx.AsyncHTTPTransport(uds=str(self.admin_socket)),
            timeout=PATIENCE_S,
        )

    async def order(self, path: str) -> httpx.Response:
        async with self.admin() as client:
            return await client.post(f"/admin/{path}")

    # ── as a client ──

    async def status(self) -> dict[str, Any]:
        return (await self.client.get("/status")).json()

    async def model(self, name: str) -> dict[str, Any]:
        return next(m for m in (await self.status())["models"] if m["name"] == name)

    async def until_model(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Wait until the model's status has these values."""
        end = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            found = [m for m in (await self.status())["models"] if m["name"] == name]
            if found and all(found[0][key] == value for key, value in wanted.items()):
                return found[0]
            assert asyncio.get_running_loop().time() < end, (found, self.log)
            await asyncio.sleep(0.02)

    async def ask(self, model: str, prompt: str, client: httpx.AsyncClient | None = None) -> str:
        """Return the streamed answer; raises AnswerError when it does not end as it should."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
        }
        text, done = "", False
        async with (client or self.client).stream(
            "POST", "/v1/chat/completions", json=body
        ) as response:
            if response.status_code != httpx.codes.OK:
                raise AnswerError(json.loads(await response.aread())["error"])
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    done = True
                    continue
                data = json.loads(line.removeprefix("data: "))
                if "error" in data:
                    raise AnswerError(data["error"])
                text += "".join(c["delta"].get("content") or "" for c in data["choices"])
        if not done:
            raise AnswerError({"code": "cut_off", "message": text})
        return text


class AnswerError(Exception):
    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(error))
        self.code = error["code"]
        self.message = error["message"]


@asynccontextmanager
async def appliance(folder: Path, *models: str, **keys: Any) -> AsyncIterator[Appliance]:
    """Start a daemon on these models and wait until it serves; in the end nothing is left of it."""
    box = Appliance(folder)
    box.write(*models)
    await box.start(**keys)
    async with closing(box):
        await box.until_logged("daemon.serving")
        yield box


@asynccontextmanager
async def closing(box: Appliance) -> AsyncIterator[None]:
    """Leave nothing of a daemon that was started."""
    try:
        yield
    finally:
        await box.client.aclose()
        if box.process.returncode is None:
            workers = box.workers()
            box.process.kill()
            await box.exit()
            await until(lambda: not any(is_alive(pid) for pid in workers))
