"""From saved files to a plan in force: one reload at a time, as a whole or not at all.

A wish that comes during a reload makes one more pass, so no change is lost. What `Reloading` shows
is written by its own task only (`run`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from msgspec import Struct

from edged import auth, config, hardware, plan
from edged.api.access import Access
from edged.api.box import Applied
from edged.auth import Keyring
from edged.config import Listen
from edged.daemon import watch
from edged.daemon.listeners import ListenError
from edged.daemon.telling import Telling
from edged.errors import ConfigError, ConfigRefused, ShuttingDown
from edged.log import get_logger
from edged.plan import Diff, Plan
from edged.store import folders, lock

log = get_logger()

_READ_S = 60.0  # the configuration, the heads of model files and the hardware
_LOCK_S = 2.0

# What the daemon does with a new plan: (plan, what is new in it, whether a person wished it).
# Raises ListenError, and then everything is as it was.
Bring = Callable[[Plan, Diff, bool], Awaitable[None]]


class Files(Struct, frozen=True):
    """What a daemon starts with."""

    path: Path  # of models.toml
    keyring: Keyring
    plan: Plan
    seen: dict[Path, watch.Fingerprint]  # the files, as they were before they were read
    held: tuple[Listen, ...] = ()  # what systemd has opened for it


def read(path: Path, held: tuple[Listen, ...] = ()) -> Files:
    """Read both files and the hardware, and decide; raises ConfigError."""
    seen = {each: watch.fingerprint(each) for each in (path, auth.path_beside(path))}
    keyring = auth.load(auth.path_beside(path))
    return Files(path, keyring, _plan(path, keyring, held), seen, held)


def _plan(path: Path, keyring: Keyring, held: tuple[Listen, ...]) -> Plan:
    loaded = config.load(path)
    auth.check_reach(loaded.server, keyring, auth.path_beside(path), held)
    return plan.make(loaded, hardware.detect(loaded.hardware))


class Reloading:
    """The plan in force, and the way to the next one."""

    def __init__(self, first: Files, access: Access, telling: Telling, bring: Bring) -> None:
        self.plan = first.plan  # `bring` writes it, between what can fail and what cannot
        self.generation = 1
        self.applied_at = time.time()
        self.problem: str | None = None  # why what is saved is not in force
        self._first = first
        self._path = first.path
        self._access = access
        self._telling = telling
        self._bring = bring
        self._wanted = asyncio.Event()
        self._files_came = False  # the wish is for them, no person has saved or asked
        self._waiting: list[asyncio.Future[Applied]] = []
        self._stopped = False

    def wish(self) -> None:
        """Read the files again, soon."""
        self._wanted.set()

    def files_came(self) -> None:
        """Make use of model files that were missing, soon."""
        self._files_came = True
        self._wanted.set()

    async def reload(self) -> Applied:
        """Bring the files into force now; raises ConfigRefused with all that is wrong with them."""
        if self._stopped:
            raise ShuttingDown("edged is stopping")
        outcome: asyncio.Future[Applied] = asyncio.get_running_loop().create_future()
        self._waiting.append(outcome)
        self._wanted.set()
        return await outcome

    def stop(self) -> None:
        """Bring nothing into force any more."""
        self._stopped = True
        for outcome in self._waiting:
            outcome.cancel()

    # ── wishes ──

    async def watch_config(self) -> None:
        """Wish whenever models.toml has changed."""
        await self._watch(self._path)

    async def watch_keys(self) -> None:
        """Wish whenever keys.toml has changed."""
        await self._watch(auth.path_beside(self._path))

    async def _watch(self, path: Path) -> None:
        async for _ in watch.changes(path, self._first.seen[path]):
            self.wish()

    async def watch_lock(self) -> None:
        """Follow `models.lock` too: `edged pull` and `edged import` bring files without us.

        By looking, not by events: its folder is where downloads write all the time, and another
        one whenever the configuration says so.
        """
        seen = self._lock_seen()
        while True:
            await asyncio.sleep(_LOCK_S)
            if (now := self._lock_seen()) != seen:
                seen = now
                self.files_came()

    def _lock_seen(self) -> watch.Fingerprint:
        store = folders.models(self.plan.config.store.folder, str(self._path))
        return watch.fingerprint(store / lock.NAME)

    # ── reloads ──

    async def run(self) -> None:
        """Reload whenever it is wished."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if self._stopped:
                return
            waiting, self._waiting = self._waiting, []
            with self._telling.reload():
                # Keys first: a revoked one must go also while models.toml is broken.
                keyring = await self._bring_keys()
                outcome = keyring if isinstance(keyring, str) else await self._bring_plan(keyring)
                self.problem = outcome if isinstance(outcome, str) else None
            for each in waiting:
                if each.done():  # it does not wait any more
                    continue
                if isinstance(outcome, str):
                    each.set_exception(ConfigRefused(outcome))
                else:
                    each.set_result(outcome)

    async def _bring_keys(self) -> Keyring | str:
        """Bring `keys.toml` into force, or return what is wrong with it; then the old one stays."""
        try:
            keyring = await asyncio.to_thread(auth.load, auth.path_beside(self._path))
        except ConfigError as error:
            log.error("keys.rejected", problem=error.message)  # noqa: TRY400
            return error.message
        if self._access.replace(keyring):
            log.info("keys.applied", keys=[key.name for key in keyring.keys])
        return keyring

    async def _bring_plan(self, keyring: Keyring) -> Applied | str:
        """Bring the file into force as a whole, or nothing of it: then return what is wrong."""
        began = time.monotonic()
        files_came, self._files_came = self._files_came, False
        try:
            # In a thread: a slow disk or driver must not hold up the streams.
            reading = asyncio.to_thread(_plan, self._path, keyring, self._first.held)
            new = await asyncio.wait_for(reading, _READ_S)
            change = plan.diff(self.plan, new)
            if self._stopped:
                return "edged is stopping"
            # Who saves the file or sends SIGHUP has perhaps mended what kept files from coming.
            by_person = not files_came or new.config != self.plan.config
            await self._bring(new, change, by_person)
        except TimeoutError:
            log.error("config.rejected", problem="timeout")  # noqa: TRY400 - it says all
            return f"reading it took more than {_READ_S:.0f} s: is its disk or a driver stuck?"
        except (ConfigError, ListenError) as error:
            log.error("config.rejected", problem=str(error))  # noqa: TRY400 - no traceback wanted
            return str(error)
        except Exception:
            # Our own fault must not take the running models with it; what runs stays in force.
            log.exception("config.fault")
            return "an internal fault while reading it; see the log"
        self.generation += 1
        self.applied_at = time.time()
        applied = Applied(self.generation, round(time.monotonic() - began, 4), change)
        log.info(
            "config.applied",
            generation=applied.generation,
            seconds=applied.seconds,
            added=change.added,
            removed=change.removed,
            replaced=change.replaced,
            updated=change.updated,
            server=change.server,
        )
        return applied
