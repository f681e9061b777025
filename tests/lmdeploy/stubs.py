"""Libraries that let TurboMind's native module load without CUDA: for `native`, and nothing else.

Whoever sees them takes this for a box with LMDeploy ready to run. So they are written into a folder
of the test run, outside every environment, and reach one subprocess through LD_LIBRARY_PATH. Each
function in them ends the process. cudart is NVIDIA's own, which needs no driver.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from edged.cuda.installing import requirements
from tests.models.cache import UnavailableError, build_once

#: Library → what its functions' names begin with.
LIBRARIES = {
    "libcublas.so.12": r"cublas",
    "libcublasLt.so.12": r"cublasLt",
    "libnccl.so.2": r"nccl",
    "libcuda.so.1": r"cu[A-Z]",
}
_VERSIONED = "libcublas.so.12"  # its symbols carry its name as their version
_CUDART = "nvidia-cuda-runtime-cu12"
_LIMIT_S = 300


def write(folder: Path, python: Path) -> Path:
    """Write the libraries that the native module of `python` wants; return the folder.

    Raises UnavailableError with the reason.
    """
    cc = shutil.which("cc") or shutil.which("gcc")
    nm = shutil.which("nm")
    if cc is None or nm is None:
        raise UnavailableError("there is no C compiler (cc), or no nm beside it")
    listing = _run([nm, "-D", "--undefined-only", str(_native_module(python))], "nm fails")
    wanted = {line.split()[-1].partition("@")[0] for line in listing.splitlines() if line.strip()}
    for name, begin in LIBRARIES.items():
        functions = sorted(each for each in wanted if re.match(begin, each))
        source, versions = folder / f"{name}.c", folder / f"{name}.map"
        lines = [
            "#include <stdlib.h>",
            *(f"void {each}(void) {{ abort(); }}" for each in functions),
        ]
        source.write_text("\n".join(lines) + "\n")
        versions.write_text(f"{name} {{ global: *; }};\n")
        command = [cc, "-shared", "-fPIC", str(source), f"-Wl,-soname,{name}"]
        command += [f"-Wl,--version-script={versions}"] * (name == _VERSIONED)
        _run([*command, "-o", str(folder / name)], f"{name} cannot be compiled")
    lock = next(each for each in requirements() if each.name == _CUDART)
    made = build_once(f"cudart-{lock.version}", lambda path: _install(path, python, lock.text))
    for library in made.rglob("libcudart.so*"):
        shutil.copy(library, folder)
    return folder


def _native_module(python: Path) -> Path:
    found = list(python.parents[1].glob("lib/*/site-packages/lmdeploy/turbomind/_turbomind*.so"))
    if not found:
        raise UnavailableError("LMDeploy's wheel has no native module for this Python")
    return found[0]


def _install(path: Path, python: Path, pinned: str) -> None:
    path.mkdir()
    listed = path / "requirements.txt"
    listed.write_text(pinned)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"]
    hashed = ["--disable-pip-version-check", "--require-hashes", "--only-binary=:all:"]
    wanted = ["--requirement", str(listed), "--target", str(path)]
    _run([*pip, *hashed, *wanted], f"{_CUDART} cannot be had")


def _run(command: list[str], failure: str) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT_S)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise UnavailableError(f"{failure}: {said[-1] if said else error!r}") from error
    return done.stdout
