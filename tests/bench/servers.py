"""The two sides of a benchmark as processes: edged and llama-server, with the same settings."""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.bench.client import Address, BenchError
from tests.bench.peer_build import peer_programs

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 120.0
STOP_LIMIT_S = 20.0
LOG_TAIL = 20


@dataclasses.dataclass(frozen=True)
class Settings:
    """What both sides get. ``context`` is per request; the pool holds ``context x parallel``."""

    model: Path
    threads: int
    context: int = 2048
    parallel: int = 8
    batch: int = 512
    kv_type: str = "f16"
    peer_args: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Server:
    """A running side."""

    name: str
    address: Address
    pid: int


@dataclasses.dataclass(frozen=True)
class Launch:
    """How to start a side; ``ready`` is the path that answers 200 when it serves."""

    name: str
    command: tuple[str, ...]
    port: int
    ready: str
    log: Path
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def edged(settings: Settings, folder: Path, load: str = "startup") -> Launch:
    """Return the launch of ``edged serve`` with one model; config, state, log are in ``folder``."""
    port = free_port()
    config = folder / "models.toml"
    places = {
        f"{name}_DIRECTORY": str(folder / name.lower()) for name in ("STATE", "CACHE", "RUNTIME")
    }
    for place in places.values():
        Path(place).mkdir(parents=True, exist_ok=True)
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
threads = {settings.threads}
threads_batch = {settings.threads}
batch = {settings.batch}
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
    flags: dict[str, object] = {
        "--model": settings.model,
        "--alias": "bench",
        "--host": "127.0.0.1",
        "--port": port,
        "--threads": settings.threads,
        "--threads-batch": settings.threads,
        "--ctx-size": settings.context * settings.parallel,
        "--parallel": settings.parallel,
        "--batch-size": settings.batch,
        "--ubatch-size": settings.batch,
        "--cache-type-k": settings.kv_type,
        "--cache-type-v": settings.kv_type,
        "--fit": "off",
    }
    command = [str(peer_programs() / "llama-server"), "--kv-unified", "--no-ui"]
    command += [str(part) for pair in flags.items() for part in pair] + list(settings.peer_args)
    return Launch(name, tuple(command), port, "/health", folder / "log.txt")


@contextlib.asynccontextmanager
async def running(launch: Launch) -> AsyncIterator[Server]:
    """Run a side: it is ready inside, and gone with all its processes outside."""
    process = _start(launch)
    try:
        await _wait_until_ready(launch, process)
        yield Server(launch.name, Address(launch.port), process.pid)
        _check_alive(launch, process)
    finally:
        await asyncio.to_thread(_stop, process)


def _start(launch: Launch) -> subprocess.Popen[bytes]:
    # Where setpriv is, a benchmark that is killed takes its servers with it.
    guard = ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()
    with launch.log.open("w") as sink:
        return subprocess.Popen(
            guard + launch.command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | launch.environment,
            start_new_session=True,
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process politely, then its whole group without asking."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _check_alive(launch: Launch, process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        raise BenchError(f"{launch.name} ended with {process.returncode}: {_tail(launch.log)}")


async def _wait_until_ready(launch: Launch, process: subprocess.Popen[bytes]) -> None:
    try:
        async with asyncio.timeout(START_LIMIT_S):
            while await _status(launch) != b"200":
                _check_alive(launch, process)
                await asyncio.sleep(0.2)
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
