"""The servers of a benchmark as processes: edged and llama-server, with the same settings."""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tests.bench.client import Address, BenchError
from tests.bench.peer_build import peer_programs

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 120.0
STOP_LIMIT_S = 20.0
READY_EVERY_S = 0.05
LOG_TAIL = 20


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all sides get. ``context`` is per request; the pool holds ``context x parallel``.

    ``threads``: None leaves them to each side.
    """

    model: Path
    threads: int | None
    context: int = 2048
    parallel: int = 8
    batch: int = 512
    kv_type: str = "f16"
    peer_args: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Launch:
    """How to start a side; ``ready`` is the path that answers 200 when it serves."""

    name: str
    command: tuple[str, ...]
    port: int
    ready: str
    log: Path
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    counts: bool = True  # its streams tell the usage


class Server:
    """A running side."""

    def __init__(self, launch: Launch, process: subprocess.Popen[bytes]) -> None:
        self.launch = launch
        self.process = process
        self.name = launch.name
        self.address = Address(launch.port, counts=launch.counts)

    @property
    def pid(self) -> int:
        """Its process: of edged the daemon."""
        return self.process.pid

    async def restart(self) -> float:
        """End it with SIGTERM, start it again with what it has kept; return the s until ready."""
        if not await asyncio.to_thread(_stop, self.process):
            raise BenchError(f"{self.name} did not end in {STOP_LIMIT_S:.0f} s after SIGTERM")
        started = time.perf_counter()
        self.process = _start(self.launch)
        await _wait_until_ready(self.launch, self.process)
        return time.perf_counter() - started


def edged(settings: Settings, folder: Path, load: str = "startup") -> Launch:
    """Return the launch of ``edged serve`` with one model; config, state, log are in ``folder``."""
    port = free_port()
    config = folder / "models.toml"
    places = {
        f"{name}_DIRECTORY": str(folder / name.lower()) for name in ("STATE", "CACHE", "RUNTIME")
    }
    for place in places.values():
        Path(place).mkdir(parents=True, exist_ok=True)
    threads = settings.threads
    chosen = f"threads = {threads}\nthreads_batch = {threads}\n" if threads else ""
    config.write_text(
        f"""[server]
listen = ["127.0.0.1:{port}"]
[models.bench]
gguf = "file:{settings.model}"
load = "{load}"
idle_unload = "never"
context = {settings.context}
parallel = {settings.parallel}
[models.bench.llamacpp]
{chosen}batch = {settings.batch}
kv_type = "{settings.kv_type}"
"""
    )
    command = (sys.executable, "-m", "edged", "serve", "--config", str(config))
    ready = "/ready" if load == "startup" else "/health"
    return Launch("edged", command, port, ready, folder / "log.txt", places)


def llama_server(settings: Settings, folder: Path, name: str = "llama-server") -> Launch:
    """Return the launch of llama-server, with one KV pool for all slots as edged has it."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(peer_programs() / "llama-server"), "--kv-unified", "--no-ui", "--fit", "off"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--alias", "bench"]
    command += ["--parallel", str(settings.parallel)]
    command += [*with_settings(settings), *settings.peer_args]
    return Launch(name, tuple(command), port, "/health", folder / "log.txt")


def with_settings(settings: Settings) -> tuple[str, ...]:
    """Return the settings as the options that all of llama.cpp's programs have."""
    flags: dict[str, object] = {
        "--model": settings.model,
        "--ctx-size": settings.context * settings.parallel,
        "--batch-size": settings.batch,
        "--ubatch-size": settings.batch,
        "--cache-type-k": settings.kv_type,
        "--cache-type-v": settings.kv_type,
    }
    if settings.threads:
        flags |= {"--threads": settings.threads, "--threads-batch": settings.threads}
    return tuple(str(part) for pair in flags.items() for part in pair)


@contextlib.asynccontextmanager
async def running(launch: Launch) -> AsyncIterator[Server]:
    """Run a side: it is ready inside, and gone with all its processes outside."""
    server = Server(launch, _start(launch))
    try:
        await _wait_until_ready(launch, server.process)
        yield server
        _check_alive(launch, server.process)
    finally:
        await asyncio.to_thread(_stop, server.process)


def guarded(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command that ends with this process, however that ends, where setpriv is."""
    return ("setpriv", "--pdeathsig", "TERM", *command) if shutil.which("setpriv") else command


def _start(launch: Launch) -> subprocess.Popen[bytes]:
    with launch.log.open("a") as sink:
        return subprocess.Popen(
            guarded(launch.command),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | launch.environment,
            start_new_session=True,
        )


def _stop(process: subprocess.Popen[bytes]) -> bool:
    """End the process politely, then its whole group without asking; tell if asking did it."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT_S)
    ended = process.poll() is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return ended


def _check_alive(launch: Launch, process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        raise BenchError(f"{launch.name} ended with {process.returncode}: {_tail(launch.log)}")


async def _wait_until_ready(launch: Launch, process: subprocess.Popen[bytes]) -> None:
    try:
        async with asyncio.timeout(START_LIMIT_S):
            while await _status(launch) != b"200":
                _check_alive(launch, process)
                await asyncio.sleep(READY_EVERY_S)
    except TimeoutError:
        raise BenchError(
            f"{launch.name} was not ready within {START_LIMIT_S:.0f} s: {_tail(launch.log)}"
        ) from None


async def _status(launch: Launch) -> bytes:
    """Return the HTTP status of the launch's ``ready`` path; empty where nothing answers."""
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", launch.port)
            try:
                request = f"GET {launch.ready} HTTP/1.1\r\nHost: localhost\r\n"
                writer.write(f"{request}Connection: close\r\n\r\n".encode())
                return (await reader.readline()).split()[1]
            finally:
                writer.close()
    except (OSError, TimeoutError, IndexError):
        return b""


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return f"log {log}\n" + "\n".join(lines[-LOG_TAIL:])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
