"""The composition root: from a path to a serving appliance, follow the file, and down again.

Read top-down: `run` is the life of the process, `Daemon.serve` that of its loop, `_bring` what a
saved change does. All state here is written in the loop.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

import edged
from edged import config, heap, plan
from edged.api import arrival
from edged.api.access import Access
from edged.api.app import create_app
from edged.api.box import Applied
from edged.config import Listen
from edged.daemon import certificates, mdns, reloading, telling
from edged.daemon.fetching import Fetching
from edged.daemon.lag import Lag
from edged.daemon.listeners import LAST_CALL_S, HttpServer, ListenError, address
from edged.daemon.reloading import Files, Reloading
from edged.daemon.surroundings import Surroundings
from edged.daemon.systemd import Given, listen_sockets
from edged.daemon.telling import Telling
from edged.daemon.tls import Certificate
from edged.errors import ConfigError
from edged.log import get_logger
from edged.metrics import Metrics
from edged.plan import Diff, Plan
from edged.plan import kind as kinds
from edged.protocol import Event, Generate, Request
from edged.status import ConfigStatus, FetchStatus, ModelStatus, Status
from edged.store import folders
from edged.store.responses import Limits as Kept
from edged.store.responses import Responses
from edged.supervisor import Supervisor, footprint
from edged.supervisor.ledger import Ledger
from edged.supervisor.lifecycle import Limits
from edged.supervisor.worker_process import WORKER_ARGV

log = get_logger()

EXIT_FAILED = 1
EXIT_CONFIG = 78  # EX_CONFIG: systemd is told not to try again

_MOST_FILES = 65_536
_FINISH_S = 20.0  # open streams may finish after SIGTERM
_TIDY_S = 3600.0


def run(
    config_path: str | None,
    *,
    worker_argv: Sequence[str] = WORKER_ARGV,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    finish_s: float = _FINISH_S,
) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code.

    0 after a stop that was asked for, 1 when an address cannot be had, 78 when the configuration
    cannot be used; the reasons are on stderr, a line each.
    """
    heap.use_one_arena()
    heap.give_back_large_blocks()
    faulthandler.enable()  # the watchdog's SIGABRT shows where the loop stood
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    _raise_file_limit()
    given = listen_sockets()
    held = tuple(address(each.socket) for each in given)
    try:
        path = Path(os.path.abspath(config.find(config_path)))  # noqa: PTH100 - links stay links
        first = reloading.read(path, held)
    except ConfigError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 - for the person who started it
        return EXIT_CONFIG
    ledger = Ledger(folders.state() / "ledger.json")
    supervisor = Supervisor(worker_argv=worker_argv, limits=limits, ledger=ledger)
    daemon = Daemon(first, supervisor, given, finish_s=finish_s)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(daemon.serve())
        except ListenError as error:
            print(error, file=sys.stderr)  # noqa: T201
            return EXIT_FAILED


def _raise_file_limit() -> None:
    """Allow as many open connections as we may; the soft limit of a login is only 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Daemon:
    """Everything that runs in the parent process; the `Box` that the api sees."""

    def __init__(
        self, first: Files, supervisor: Supervisor, given: Sequence[Given], *, finish_s: float
    ) -> None:
        """`given`: the sockets that systemd holds."""
        self.metrics = Metrics()
        self.access = Access(first.keyring, metrics=self.metrics)
        self.certificate = Certificate(folders.state() / "tls")
        self.responses = Responses(folders.state() / "responses.db", self._kept)
        self._path = first.path
        self._supervisor = supervisor
        self._finish_s = finish_s
        self._started = time.monotonic()
        self._telling = Telling(self._status_line)
        self._reloading = Reloading(first, self.access, self._telling, self._bring)
        self._admin: tuple[Listen, ...] = ()  # the socket for orders, once it is open
        self._fetching = Fetching(first.path, self._reloading.files_came)
        self._stop = asyncio.Event()
        self._exit_code = 0
        self._lag = Lag()
        self._surroundings = Surroundings(self._reloading.wish)
        self._surroundings.follow(first.plan.hardware, first.plan.config.hardware)
        supervisor.on_failed_launch = self._surroundings.doubt
        self._presence = mdns.Presence(self._to_announce)
        self._tasks: set[asyncio.Task[None]] = set()
        self._http = HttpServer(
            create_app(self),
            given,
            finish_s=finish_s,
            context=self.certificate.context,
        )

    # ── what the api asks ──

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self._reloading.plan

    def generate(self, name: str, request: Request) -> AsyncGenerator[Event, None]:
        """As `Supervisor.generate`, for a name or an alias.

        Fills in the model's sampling settings where the request is silent. Raises at once:
        ModelNotFound when no model has this name, WrongModelKind before it is loaded in vain.
        """
        model_plan = self.plan.resolve(name)
        model = model_plan.model
        if (fetch := self.fetching(model.name)) is not None:
            raise arrival.refusal(model.name, fetch)
        kinds.check(model_plan.kind, request)
        if isinstance(request, Generate):
            sampling = request.sampling.over(model.sampling)
            request = msgspec.structs.replace(request, sampling=sampling)
        return self._supervisor.generate(model.name, request)

    def fetching(self, name: str) -> FetchStatus | None:
        """Return how far the files are of a model that cannot run without them, else None."""
        model_plan = self.plan.models.get(name)
        if model_plan is None or not model_plan.is_fetching or self._supervisor.can_serve(name):
            return None
        return self._fetching.of(name) or FetchStatus(source=str(model_plan.missing[0]))

    def _with_fetch(self, status: ModelStatus) -> ModelStatus:
        """Add what is known of files on their way, which the supervisor does not see."""
        fetch = self._fetching.of(status.name)
        if fetch is None:
            return status
        status = msgspec.structs.replace(status, fetch=fetch)
        if status.state != "fetching":  # only adapters are missing
            return status
        done = fetch.done_bytes / fetch.total_bytes if fetch.total_bytes else None
        state = "failed" if fetch.is_hopeless else status.state
        return msgspec.structs.replace(status, progress=done, error=fetch.error, state=state)

    def _kept(self) -> Kept:
        server = self.plan.config.server
        return Kept(server.responses_keep_s, server.responses_max_bytes)

    @property
    def admin_socket(self) -> str:
        """Path of the socket for orders, "" while there is none."""
        return self._admin[0].path if self._admin else ""

    async def reload(self) -> Applied:
        """Bring the files into force now; raises ConfigRefused with all that is wrong with them."""
        return await self._reloading.reload()

    async def load(self, name: str) -> None:
        """Load a model, and end its drain; as `Supervisor.load`, for a name or an alias."""
        await self._supervisor.load(self.plan.resolve(name).model.name)

    async def unload(self, name: str) -> None:
        """Stop a model's worker when its requests have ended."""
        await self._supervisor.unload(self.plan.resolve(name).model.name, drain=False)

    async def drain(self, name: str) -> None:
        """Take a model out of service until it is loaded by hand."""
        await self._supervisor.unload(self.plan.resolve(name).model.name, drain=True)

    def ca(self) -> bytes | None:
        """Return what clients need to trust this box's TLS, if it is its own CA."""
        return self.certificate.ca

    def status(self) -> Status:
        """Return what `/status` shows."""
        is_ready, waiting_for = self.ready()
        own = footprint.read(os.getpid())
        return Status(
            version=edged.__version__,
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._started, 3),
            ready=is_ready,
            waiting_for=tuple(waiting_for),
            listen=tuple(
                each for each in self._http.addresses if each not in map(str, self._admin)
            ),
            memory_bytes=own.resident_bytes if own else 0,
            config=ConfigStatus(
                path=str(self._path),
                generation=self._reloading.generation,
                applied_at=self._reloading.applied_at,
                problem=self._reloading.problem,
            ),
            hardware=self.plan.hardware,
            loop_lag_s=round(self._lag.worst_s, 4),
            degraded=self._surroundings.lost,
            ledger_problem=self._supervisor.ledger.problem,
            models=tuple(map(self._with_fetch, self._supervisor.snapshot())),
        )

    def ready(self) -> tuple[bool, list[str]]:
        """Return whether every startup model is ready, and one line for each that is not."""
        if self._stop.is_set():
            return False, ["edged is stopping"]
        missing = self._supervisor.missing()
        return not missing, missing

    # ── life ──

    async def serve(self) -> int:
        """Serve until a signal and return the exit code; raises ListenError before it began."""
        await self._listen(self.plan.config.server)
        await self._open_admin_socket()
        await self._supervisor.apply(self.plan, plan.diff(None, self.plan))
        self._fetching.follow(self.plan, afresh=True)
        self._take_signals()
        http = self._spawn(self._http.run_until_exit(), "http server")
        self._spawn(self._announce(), "announce")
        self._spawn(self._reloading.watch_config(), "watch models.toml")
        self._spawn(self._reloading.watch_keys(), "watch keys.toml")
        self._spawn(self._reloading.watch_lock(), "watch models.lock")
        self._spawn(self._reloading.run(), "reload")
        self._spawn(self.certificate.keep_fresh(), "keep the certificate fresh")
        self._spawn(self._fetching.run(), "fetch")
        self._spawn(self._tidy(), "tidy")
        self._spawn(self._lag.run(), "lag")
        self._spawn(self._surroundings.run(), "surroundings")
        self._spawn(self._presence.run(), "announce by mDNS")
        self._spawn(self._telling.keep_informed(), "keep systemd informed")
        log.info("daemon.serving", listen=list(self._http.addresses), config=str(self._path))
        self._warn_if_open()
        await self._stop.wait()
        await self._shut_down(http)
        return self._exit_code

    async def _open_admin_socket(self) -> None:
        """Take orders; without this socket the box serves all the same, and only says so."""
        path = folders.admin_socket()
        admin = Listen("unix", path=str(path))
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._admin = (admin,)
            await self._listen(self.plan.config.server)
        except (OSError, ListenError) as error:
            self._admin = ()
            log.warning(
                "admin.off",
                reason=str(error),
                meaning="`edged reload` and its like do not work; SIGHUP does",
            )

    def _warn_if_open(self) -> None:
        """Say loudly that there is no lock on the door: `auth = "none"` beyond loopback."""
        server = self.plan.config.server
        beyond = [str(address) for address in server.addresses if not address.loopback]
        if beyond and server.auth == "none":
            log.warning(
                "server.open",
                listen=beyond,
                allow=list(server.allow),
                meaning="every client of these networks may use every model without a key",
            )

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        loop.add_signal_handler(signal.SIGHUP, self._reloading.wish)

    def _interrupt(self) -> None:
        if self._stop.is_set():  # the second Ctrl-C: at once
            self._http.force_exit = True
            self._supervisor.kill()
        self._stop.set()

    async def _shut_down(self, http: asyncio.Task[None]) -> None:
        """Stop in stages: no new connection, open answers finish within the limit, workers end."""
        log.info("daemon.stopping", finish_s=self._finish_s)
        self._telling.stopping(self._finish_s + 30)
        self._reloading.stop()
        self._http.should_exit = True
        if not self._http.force_exit:
            await asyncio.sleep(LAST_CALL_S)
        await asyncio.gather(
            self._supervisor.shutdown(self._finish_s), http, return_exceptions=True
        )
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.responses.close()
        log.info("daemon.stopped")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Let a part that died by a fault take the daemon down: systemd starts a whole one."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("daemon.fault", part=task.get_name(), exc_info=error)
            self._exit_code = EXIT_FAILED
            self._stop.set()

    async def _tidy(self) -> None:
        """Let stored responses go when they are too old, also while nobody asks for any."""
        while True:
            await self.responses.tidy()
            await asyncio.sleep(_TIDY_S)

    async def _announce(self) -> None:
        """Say READY once every startup model is ready or known not to become so soon."""
        settled = asyncio.create_task(self._supervisor.settled())
        try:
            await self._telling.announce(settled)
        finally:
            settled.cancel()
        is_ready, waiting_for = self.ready()
        log.info("daemon.ready", models=len(self.plan.models), waiting_for=waiting_for or None)
        if not is_ready:
            log.warning("daemon.degraded", waiting_for=waiting_for)

    def _status_line(self) -> str:
        return telling.line(
            self._supervisor.snapshot(), self._surroundings.lost, self._reloading.problem
        )

    # ── another plan ──

    async def _bring(self, new: Plan, change: Diff, by_person: bool) -> None:
        """Bring `new` into force; raises ListenError with everything as it was."""
        if change.server:
            await self._listen(new.config.server)
        await self.certificate.look()
        self._reloading.plan = new
        self._surroundings.follow(new.hardware, new.config.hardware)
        await self._supervisor.apply(new, change)
        self._fetching.follow(new, afresh=by_person)
        if change.server:
            self._warn_if_open()
            self._presence.look()

    async def _listen(self, server: config.Server) -> None:
        """Listen where `server` says; raises ListenError with everything as it was."""
        await self.certificate.use(server.tls)
        wanted = (*server.addresses, *self._admin)
        await self._http.listen_on(wanted, tls=server.tls.mode != "off")

    def _to_announce(self) -> tuple[mdns.Service, ...]:
        """Return what others may find of this box."""
        server, listening = self.plan.config.server, self._http.listening
        if not server.announce or all(each.loopback for each in listening):
            return ()
        return mdns.services(server, listening, certificates.addresses())
