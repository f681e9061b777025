"""What is done to the box. Each fault returns once it is done; recovery is measured elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.daemon.appliance import AnswerError, Appliance

BALLOON = "memory balloon"
FAT_MB = 45  # what each fake worker takes beside Python


class Faults:
    """All kinds, by name, each with the s in which the model has to serve again.

    A slow load of 2 s and a turn among three models of which two fit are in them.
    """

    def __init__(
        self, box: Appliance, dice: random.Random, state: Path, *, full_disk: bool
    ) -> None:
        self._box = box
        self._dice = dice
        self._state = state
        self._n = 0
        self.how = dict.fromkeys("abc", f"fat-{FAT_MB}")
        self.settings = dict.fromkeys("abc", "")
        self.kinds: dict[str, tuple[Callable[[str], Awaitable[None]], float]] = {
            "kill -9": (self._kill, 10),
            "crash in the engine": (self._crash, 10),
            "worker stopped (SIGSTOP)": (self._stop, 30),
            "hang, the loop alive": (self._halt, 30),
            "hang, nothing alive": (self._freeze, 30),
            BALLOON: (self._balloon, 10),
            "good edit": (self._good_edit, 10),
            "good edit in place": (self._edit_in_place, 10),
            "edit to a slow load": (self._slow_edit, 10),
            "edit to a file that is no model": (self._bad_edit, 10),
            "edit with an error": (self._broken_edit, 10),
            "model file truncated": (self._truncate, 10),
            "SIGHUP storm": (self._storm, 10),
        }
        if full_disk:
            self.kinds["disk full"] = (self._full_disk, 10)

    def write(self) -> None:
        """Save models.toml as it should be now."""
        lines = [f"{name}--{self.how[name]} {self.settings[name]}" for name in self.how]
        self._box.save(self._box.toml(*lines) + self._hardware)

    _hardware = ""

    def limit(self, budget_bytes: int, total_bytes: int) -> None:
        """Leave so much memory to models."""
        self._hardware = f'[hardware]\nreserve_memory = "{(total_bytes - budget_bytes) >> 10}KiB"\n'

    # ── to a worker ──

    async def _pid(self, model: str) -> int | None:
        pid = (await self._box.model(model))["pid"]
        return int(pid) if pid else None

    async def _kill(self, model: str) -> None:
        if (pid := await self._pid(model)) is not None:
            self._send(pid, signal.SIGKILL)

    async def _stop(self, model: str) -> None:
        if (pid := await self._pid(model)) is not None:
            self._send(pid, signal.SIGSTOP)

    @staticmethod
    def _send(pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    async def _say(self, model: str, prompt: str) -> None:
        """Send a request that ends with the worker; the number makes it another one each time."""
        self._n += 1
        with contextlib.suppress(AnswerError):
            await self._box.ask(model, f"{prompt} {self._n}")

    async def _crash(self, model: str) -> None:
        kind = self._dice.choice(["SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS"])
        await self._say(model, f"die {kind}")

    async def _halt(self, model: str) -> None:
        await self._say(model, "halt")

    async def _freeze(self, model: str) -> None:
        await self._say(model, "freeze")

    async def _balloon(self, model: str) -> None:
        with contextlib.suppress(AnswerError):
            await self._box.ask(model, f"balloon {self._dice.randrange(60, 200)} 4.{self._n}")

    # ── to models.toml ──

    async def _good_edit(self, model: str) -> None:
        self._n += 1
        self.settings[model] = f"context = {32 + self._n % 30}"
        self.write()

    async def _edit_in_place(self, model: str) -> None:
        self._n += 1
        self.settings[model] = f"idle_unload = '{600 + self._n}s'"
        self.write()

    async def _slow_edit(self, model: str) -> None:
        self.how[model] = f"slow-{self._dice.choice(['0.5', '1', '2'])}"
        self.write()

    async def _bad_edit(self, model: str) -> None:
        before, self.how[model] = self.how[model], "bad"
        self.write()
        await asyncio.sleep(self._dice.uniform(0.5, 2))
        self.how[model] = before
        self.write()

    async def _broken_edit(self, model: str) -> None:
        self._box.save(self._box.config.read_text() + f"[models.{model}]\ngguf = 5\n")
        await asyncio.sleep(self._dice.uniform(0.2, 1))
        self.write()

    async def _storm(self, _model: str) -> None:
        for _ in range(50):
            self._box.process.send_signal(signal.SIGHUP)
            await asyncio.sleep(0.01)

    # ── to files ──

    async def _truncate(self, model: str) -> None:
        path = self._box.gguf(f"{model}--{self.how[model]}")
        whole = path.with_suffix(".whole")
        shutil.copy(path, whole)
        with path.open("r+b") as file:
            file.truncate(1000)
        self._box.process.send_signal(signal.SIGHUP)
        await asyncio.sleep(self._dice.uniform(0.2, 1))
        whole.replace(path)
        self._box.process.send_signal(signal.SIGHUP)

    async def _full_disk(self, _model: str) -> None:
        filler = self._state / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
        await asyncio.sleep(self._dice.uniform(1, 3))
        filler.unlink()
