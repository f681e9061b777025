"""The adapters that requests may ask for, as the loop sees them: wanted, lent, given back.

Each file of the wanted set is a version with a number of its own. It is read through in a thread,
so that it lies in the page cache, and loaded between two steps of the engine thread (27 ms of
computing for 35 MB on a 0.5B model). A version that is not wanted any more, or whose file was
replaced, is freed when the last request that began with it is over.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from edged.errors import AdapterFailed, EdgedError, ModelNotFound, ShuttingDown
from edged.log import get_logger
from edged.protocol import AdapterFile, AdapterState
from edged.worker.llamacpp.lora import BadAdapterError
from edged.worker.llamacpp.runner import Runner
from edged.worker.llamacpp.sequence import Sequence as TokenSequence

log = get_logger()

_PIECE_BYTES = 1 << 20


class Version:
    """One file that was, or is being, loaded. Written by the loop only."""

    def __init__(self, number: int, file: AdapterFile, loaded: asyncio.Future[None]) -> None:
        self.number = number
        self.file = file
        self.identity = ""  # of the file that was loaded
        self.loaded = loaded  # ends with AdapterFailed where the load did
        self.wanted = True
        self.users = 0

    @property
    def error(self) -> str:
        """Why it cannot be used."""
        if not self.loaded.done() or self.loaded.cancelled():
            return ""
        found = self.loaded.exception()
        return found.message if isinstance(found, EdgedError) else ""

    def state(self) -> AdapterState:
        """Return what the daemon is told."""
        if not self.loaded.done():
            return AdapterState(self.file.name, "loading")
        return AdapterState(self.file.name, "failed" if self.error else "ready", self.error)


class Lent:
    """What one request uses, until it gives it back."""

    def __init__(
        self, uses: list[tuple[Version, float]], give_back: Callable[[Version], None]
    ) -> None:
        self._uses = uses
        self._give_back = give_back

    def dress(self, sequence: TokenSequence) -> None:
        """Let a sequence be computed with them; its prefix is shared among such ones only."""
        uses = sorted(self._uses, key=lambda use: use[0].number)
        sequence.adapters = tuple((version.number, scale) for version, scale in uses)
        marks = sorted(f"{v.file.name}={v.identity}*{scale!r}" for v, scale in self._uses)
        sequence.group = "\x1f".join([sequence.group, *marks])

    def release(self) -> None:
        """Give everything back."""
        for version, _ in self._uses:
            self._give_back(version)


class Adapters:
    """All versions of one loaded model. Lives in the loop."""

    def __init__(self, runner: Runner, between_steps: Callable[[Callable[[], None]], None]) -> None:
        """`between_steps` hands work to the engine thread, the only one to touch the runner."""
        self._runner = runner
        self._between_steps = between_steps
        self._loop = asyncio.get_running_loop()
        self._current: dict[str, Version] = {}
        self._live: set[Version] = set()  # in memory, or on the way
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_number = 0

    def want(self, files: Sequence[AdapterFile]) -> None:
        """Have these and no others; what had failed is tried again."""
        current = {}
        for file in files:
            same = (v for v in self._live if v.file == file and not v.error)
            current[file.name] = next(same, None) or self._begin(file)
        self._current = current
        for version in list(self._live):
            version.wanted = version in current.values()
            self._leave(version)

    def states(self) -> tuple[AdapterState, ...]:
        """Return how the wanted ones are."""
        return tuple(version.state() for version in self._current.values())

    async def lend(self, uses: Sequence[tuple[str, float]]) -> Lent:
        """Return the present versions once they are loaded.

        Raises ModelNotFound for a name that is not wanted, AdapterFailed and ShuttingDown.
        """
        found: list[tuple[Version, float]] = []
        for name, scale in uses:
            if name not in self._current:
                raise ModelNotFound(f"adapter {name!r} was removed meanwhile", param="model")
            if scale:  # 0 changes nothing, and llama.cpp leaves it out too
                found.append((self._current[name], scale))
        for version, _ in found:
            version.users += 1
        lent = Lent(found, self._back)
        try:
            for version, _ in found:
                await asyncio.shield(version.loaded)
        except BaseException:
            lent.release()
            raise
        return lent

    def _back(self, version: Version) -> None:
        version.users -= 1
        self._leave(version)

    def close(self) -> None:
        """End the loads and who waits for them; what is in memory goes with the model."""
        for task in self._tasks:
            task.cancel()
        for version in self._live:
            if not version.loaded.done():
                self._failed(version, ShuttingDown("the model is being stopped; try again"))
        self._live.clear()

    # ── loading and freeing ──

    def _begin(self, file: AdapterFile) -> Version:
        self._last_number += 1
        version = Version(self._last_number, file, self._loop.create_future())
        self._live.add(version)
        task = self._loop.create_task(self._load(version))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return version

    async def _load(self, version: Version) -> None:
        path = Path(version.file.path)
        done: asyncio.Future[None] = self._loop.create_future()

        def report(error: BaseException | None) -> None:  # in the loop
            if done.cancelled():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def load() -> None:  # in the engine thread
            error: Exception | None = None
            try:
                self._runner.load_adapter(version.number, path)
            except BadAdapterError as failure:
                error = failure
            self._loop.call_soon_threadsafe(report, error)

        try:
            version.identity = await asyncio.to_thread(_read_through, path)
            self._between_steps(load)
            await done
        except BadAdapterError as failure:
            self._refuse(version, str(failure))
            return
        except OSError as failure:
            self._refuse(version, f"{path} cannot be read: {failure.strerror}")
            return
        if not version.loaded.done():
            version.loaded.set_result(None)
        self._leave(version)

    def _refuse(self, version: Version, reason: str) -> None:
        name = version.file.name
        log.error("adapter.failed", adapter=name, reason=reason)
        self._live.discard(version)
        message = f"adapter {name!r} cannot be used: {reason}"
        self._failed(version, AdapterFailed(message, param="model"))

    @staticmethod
    def _failed(version: Version, error: EdgedError) -> None:
        version.loaded.set_exception(error)
        version.loaded.exception()  # perhaps nobody waits: not a forgotten error

    def _leave(self, version: Version) -> None:
        """Free a version that is loaded, not wanted and not used."""
        if version.wanted or version.users or not version.loaded.done():
            return
        if version in self._live:
            self._live.discard(version)
            # Behind the commands that ended its last sequences.
            self._between_steps(lambda: self._runner.free_adapter(version.number))


def _read_through(path: Path) -> str:
    """Read a file to its end, so that it lies in the page cache; return which one it was."""
    piece = bytearray(_PIECE_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass
        status = os.fstat(file.fileno())
        return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
