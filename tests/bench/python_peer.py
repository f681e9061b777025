"""llama-cpp-python's own example server, with the packages that its ``server`` extra asks for."""

import subprocess
import sys
from pathlib import Path

from tests.bench.client import BenchError
from tests.bench.servers import Launch, Settings, free_port
from tests.models.cache import build_once

_NEEDS = (
    "fastapi==0.165.0",
    "pydantic-settings==2.16.3",
    "sse-starlette==3.7.0",
    "starlette-context==0.3.6",
    "PyYAML==6.0.3",
)


def llama_cpp_python(settings: Settings, folder: Path, name: str = "llama-cpp-python") -> Launch:
    """Return the launch of ``python -m llama_cpp.server``.

    It has one sequence: requests are served one after the other, none interrupted by the next.
    Logits of the whole prompt, which its defaults ask for, would only slow it down.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    options: dict[str, object] = {
        "--model": settings.model,
        "--model_alias": "bench",
        "--host": "127.0.0.1",
        "--port": port,
        "--n_ctx": settings.context,
        "--n_batch": settings.batch,
        "--n_ubatch": settings.batch,
        "--flash_attn": True,
        "--logits_all": False,
        "--interrupt_requests": False,
        "--verbose": False,
    }
    if settings.kv_type != "f16":  # its default; others it knows by number only
        raise BenchError(f"{name} is measured with a KV of f16 only")
    if settings.threads:
        options |= {"--n_threads": settings.threads, "--n_threads_batch": settings.threads}
    command = [sys.executable, "-m", "llama_cpp.server"]
    command += [str(part) for pair in options.items() for part in pair]
    environment = {"PYTHONPATH": str(packages())}
    log = folder / "log.txt"
    return Launch(name, tuple(command), port, "/v1/models", log, environment, counts=False)


def packages() -> Path:
    """Return the folder of what the server needs beside what is installed here."""
    return build_once("null-peer-1", _install)


def _install(target: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
    done = subprocess.run([*pip, *_NEEDS], check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"the peer's packages cannot be installed: {done.stderr[-300:]}")
