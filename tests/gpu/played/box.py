"""A box with a played GPU: `python -m tests.gpu.played.box FOLDER COMMAND …` runs a command on it.

So that the first minute on a real one is not spent on typing errors. It needs a C compiler and the
environment of tests/lmdeploy; pynvml is the real one, over a library of our own (`nvml.c`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.lmdeploy import environment
from tests.models.cache import UnavailableError

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def write(folder: Path) -> dict[str, str]:
    """Write the box below `folder`; return the environment of what runs on it.

    Raises UnavailableError with the reason.
    """
    cc = shutil.which("cc")
    if cc is None:
        raise UnavailableError("there is no C compiler (cc)")
    own = environment.python()
    taken, libraries, programs = folder / "taken", folder / "lib", folder / "bin"
    for each in (taken, libraries, programs):
        each.mkdir(parents=True, exist_ok=True)
    driver = libraries / "libnvidia-ml.so.1"
    command = [cc, "-shared", "-fPIC", "-O1", str(HERE / "nvml.c"), "-o", str(driver)]
    subprocess.run(command, check=True, timeout=60)
    _script(programs / "nvidia-smi", f'exec "{sys.executable}" "{HERE}/nvidia_smi.py" "$@"')
    paths = f'"{ROOT}${{PYTHONPATH:+:$PYTHONPATH}}"'
    _script(
        programs / "python-with-lmdeploy",
        f'PYTHONPATH={paths} exec "{own}" -m tests.gpu.played.python "$@"',
    )
    return {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(libraries),
        "EDGED_PLAYED_GPU": str(taken),
        "LMDEPLOY_PYTHON": str(programs / "python-with-lmdeploy"),
        "PYTHONPATH": str(ROOT),
    }


def _script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def main() -> int:
    """Run a command on the box and return its exit code."""
    played = write(Path(sys.argv[1]).absolute())
    return subprocess.run(sys.argv[2:], check=False, env=os.environ | played).returncode


if __name__ == "__main__":
    sys.exit(main())
