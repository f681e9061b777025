"""Mixed traffic on three models that do not all fit, and faults at random: do the rules hold."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx

from edged import hardware
from edged.supervisor import footprint
from tests.chaos.faults import BALLOON, Faults
from tests.chaos.record import Ended, Fault, Record
from tests.daemon.appliance import AnswerError, Appliance, closing
from tests.daemon.support import is_alive, until

MODELS = "abc"
CLIENTS = 16
BUDGET_BYTES = 180 << 20  # two workers of about 70 MB and not three
_SHARE = 1.02
_OVER_LIMIT_S = 2.0  # a balloon is up at once, and noticed in 0.1 s where a core is free
_MOST_GROWTH_BYTES = 2 << 20  # of the daemon, once it has settled
_SETTLED = 2  # rounds of all faults
_OTHER_FILES = 3  # that the daemon may have open by the way
_LOOK_S = 0.25
_CALM_S = 0.5  # between two faults at least
_WARM_S = 5.0


class Chaos:
    """One run, reproducible as far as processes are: `seed` chooses faults and requests."""

    def __init__(self, folder: Path, *, seconds: float, seed: int) -> None:
        self.record = Record()
        self._folder = folder
        self._seconds = seconds
        self._dice = random.Random(seed)
        self._box = Appliance(folder)
        self._over = asyncio.Event()
        self._sizes: list[int] = []  # of the daemon in bytes, after each round of all faults

    async def run(self) -> Record:
        """Run it and return what happened; the daemon is gone then."""
        with _small_disk(self._folder / "state") as full_disk:
            faults = Faults(self._box, self._dice, self._folder / "state", full_disk=full_disk)
            faults.limit(BUDGET_BYTES, hardware.detect().memory.limit_bytes)
            faults.write()
            await self._box.start(env={"STATE_DIRECTORY": str(self._folder / "state")})
            async with closing(self._box):
                await self._box.until_logged("daemon.serving")
                await self._weather(faults)
        return self.record

    async def _weather(self, faults: Faults) -> None:
        await self._box.status()
        files = self._files()
        clients = [asyncio.create_task(self._client(n)) for n in range(CLIENTS)]
        scales = asyncio.create_task(self._weigh())
        await asyncio.sleep(_WARM_S)
        end = time.monotonic() + self._seconds
        names = list(faults.kinds)
        while time.monotonic() < end:
            self._dice.shuffle(names)
            for kind in names:
                await self._inject(faults, kind, self._dice.choice(MODELS))
                if time.monotonic() >= end:
                    break
            else:
                self._sizes.append(self._private_bytes())
        self._over.set()
        await asyncio.gather(*clients)
        scales.cancel()
        await self._look_around(files)

    async def _inject(self, faults: Faults, kind: str, model: str) -> None:
        act, bound_s = faults.kinds[kind]
        fault = Fault(kind, model, time.monotonic(), bound_s)
        self.record.faults.append(fault)
        await asyncio.wait_for(act(model), 90)
        fault.over_s = await self._served_again(model)
        await asyncio.sleep(_CALM_S)

    async def _served_again(self, model: str) -> float | None:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            with contextlib.suppress(AnswerError):
                await self._box.ask(model, "count 1")
                return time.monotonic()
            await asyncio.sleep(0.1)
        return None

    # ── traffic ──

    async def _client(self, number: int) -> None:
        dice = random.Random(self._dice.random() + number)
        async with self._box.new_client() as client:
            while not self._over.is_set():
                await self._one_request(dice, client)
                await asyncio.sleep(dice.uniform(0, 0.2))

    async def _one_request(self, dice: random.Random, client: httpx.AsyncClient) -> None:
        model = dice.choice(MODELS)
        n = dice.randrange(1, 20)
        # Each another one: the same text that was open at two deaths would be refused as poison.
        prompt = f"count {n} {dice.choice([0, 0.01, 0.05])} {self.record.began}"
        asking = self._box.ask(model, prompt, client)
        patience_s = dice.uniform(0, 0.5) if dice.random() < 0.1 else None
        self.record.began += 1
        began, end, message = time.monotonic(), "ok", ""
        try:
            answer = await asyncio.wait_for(asking, patience_s)
            if len(answer.split()) != n:
                end, message = "wrong answer", answer
        except TimeoutError:
            end = "gone"
        except AnswerError as error:
            end, message = error.code, error.message
        except httpx.HTTPError as error:
            end, message = type(error).__name__, str(error)
        self.record.requests.append(Ended(model, began, time.monotonic(), end, message))

    # ── rules ──

    @property
    def sizes_mib(self) -> list[float]:
        """Private memory of the daemon after each round of all faults."""
        return [round(size / 2**20, 1) for size in self._sizes]

    async def _weigh(self) -> None:
        """Look again and again how much memory the workers take."""
        since = None
        while True:
            taken = sum(footprint.proportional_bytes(pid) or 0 for pid in self._box.workers())
            share = taken / BUDGET_BYTES
            self.record.peak_share = max(self.record.peak_share, share)
            now = time.monotonic()
            if share > _SHARE and self.record.faults[-1].kind != BALLOON:
                self.record.problems.append(f"memory at {share:.0%} of the budget, no balloon")
            since = (since or now) if share > _SHARE else None
            if since is not None:
                self.record.over_s = max(self.record.over_s, now - since)
            await asyncio.sleep(_LOOK_S)

    def _private_bytes(self) -> int:
        usage = footprint.read(self._box.pid)
        return usage.private_bytes if usage else 0

    def _files(self) -> int:
        """Return how many files the daemon has open, those of its workers left out."""
        files = len(list(Path(f"/proc/{self._box.pid}/fd").iterdir()))
        return files - 3 * len(self._box.workers())

    async def _look_around(self, files: int) -> None:
        """Look for what was left behind, first in the daemon that lives, then after its end."""
        problems = self.record.problems
        if self.record.over_s > _OVER_LIMIT_S:
            problems.append(f"memory was over the budget for {self.record.over_s:.1f} s")
        async for found in self._at_rest():
            if found is None:
                break
        else:
            problems.append("requests or sequences were left in workers")
        states = [model["state"] for model in (await self._box.status())["models"]]
        workers = self._box.workers()
        if len(workers) != states.count("ready"):
            problems.append(f"{len(workers)} workers for models that are {states}")
        await self._look_at_daemon(files)
        code = await self._box.stop()
        if code != 0:
            problems.append(f"the daemon ended with {code}")
        if left := [pid for pid in workers if is_alive(pid)]:
            problems.append(f"workers were left behind: {left}")

    async def _look_at_daemon(self, files: int) -> None:
        """Hold its memory and its open files against what they were before."""
        grown = self._private_bytes() - (self._sizes[_SETTLED - 1 :] or [math.inf])[0]
        if grown > _MOST_GROWTH_BYTES:
            self.record.problems.append(f"the daemon grew by {grown / 2**20:.1f} MiB")
        try:  # connections of clients that have just left go in a moment
            await until(lambda: self._files() - files <= _OTHER_FILES)
        except AssertionError:
            more = self._files() - files
            self.record.problems.append(f"{more} more files open than before the first request")

    async def _at_rest(self) -> AsyncIterator[str | None]:
        for _ in range(200):
            models = (await self._box.status())["models"]
            yield (
                "busy"
                if any(
                    model["open"] or model["queued"] or ((s := model["stats"]) and s["running"])
                    for model in models
                )
                else None
            )
            await asyncio.sleep(0.05)


@contextlib.contextmanager
def _small_disk(path: Path) -> Iterator[bool]:
    """Give a state folder of its own, small enough to fill where we may mount; tell whether."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=False)
