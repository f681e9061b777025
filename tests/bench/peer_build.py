"""llama-server, the benchmark's peer, built from the source that the installed engine came from."""

import importlib.util
import os
import platform
import shutil
import subprocess
import zlib
from pathlib import Path

from tests.models import UnavailableError, llama_cpp_source
from tests.models.cache import build_once
from tests.models.source import llama_cpp_version

TARGETS = ("llama-server", "llama-batched-bench")
# As llama-cpp-python builds its wheel: Release and ggml's defaults (native, OpenMP), no curl.
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
AMX_HEADER = Path(__file__).parents[2] / "packaging/amx_tile_config.h"
BUILD_LIMIT_S = 3600
LOG_TAIL = 15


def peer_programs() -> Path:
    """Return the folder of llama-server and llama-batched-bench, compiled on first use.

    The compile takes some ten minutes on two cores; what an interrupted one made is used again.
    The folder's name carries the version, the processor's features and the build's options.
    """
    amx = _engine_uses_amx()
    key = zlib.crc32(f"{_processor_features()} {OPTIONS} {amx}".encode())
    return build_once(
        f"llama-server-{llama_cpp_version()}-{key:08x}",
        lambda path: _build(path, _compiler_flags(amx=amx)),
    )


def _compiler_flags(*, amx: bool) -> str:
    """Return what makes the peer use AMX exactly where the installed engine does."""
    if platform.machine() != "x86_64":
        return ""
    if amx:
        return f"-include {AMX_HEADER}"
    return "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


def _engine_uses_amx() -> bool:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise UnavailableError("llama-cpp-python is not installed here")
    libraries = (Path(spec.origin).parent / "lib").glob("libggml-cpu.so*")
    return any(b"AMX is not ready" in library.read_bytes() for library in libraries)


def _processor_features() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _build(path: Path, flags: str) -> None:
    for program in ("cmake", "c++"):
        if not shutil.which(program):
            raise UnavailableError(f"{program} is missing: apt-get install cmake g++")
    source = llama_cpp_source() / "vendor/llama.cpp"
    folder = path.with_name(f"{path.name.removesuffix('.unfinished')}.build")
    log = path.parent / "llama-server-build.log"
    log.unlink(missing_ok=True)
    print(f"compiling llama-server once, some ten minutes on two cores; log: {log}", flush=True)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", "-S", str(source), "-B", str(folder), *generator, *OPTIONS]
    _run([*configure, f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"], log)
    jobs = str(os.cpu_count() or 1)
    _run(["nice", "cmake", "--build", str(folder), "-j", jobs, "--target", *TARGETS], log)
    path.mkdir()
    for target in TARGETS:
        shutil.copy2(folder / "bin" / target, path / target)
    shutil.rmtree(folder)


def _run(command: list[str], log: Path) -> None:
    with log.open("a") as sink:
        try:
            subprocess.run(
                command, check=True, stdout=sink, stderr=subprocess.STDOUT, timeout=BUILD_LIMIT_S
            )
        except subprocess.SubprocessError as error:
            tail = "\n".join(log.read_text().splitlines()[-LOG_TAIL:])
            raise UnavailableError(
                f"llama-server does not compile ({error}), log {log}:\n{tail}"
            ) from error
