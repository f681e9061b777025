"""Lets edged use an interpreter that has LMDeploy: `python -m tests.gpu.borrowed PYTHON STATE`.

The machine's own torch is then used as it is; what `edged setup-cuda` would install is not tested.
"""

import subprocess
import sys
from pathlib import Path

import msgspec

import edged
from edged.hardware.cuda import PACKAGE, STAMP, Stamp, folder_in

_VERSIONS = "import lmdeploy, torch; print(lmdeploy.__version__, torch.__version__)"


def borrow(python: str, state: Path) -> Path:
    """Write a folder that looks like the environment of `setup-cuda`; return it."""
    said = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True)
    lmdeploy, torch = said.stdout.split()[-2:]
    folder = folder_in(state)
    version = folder.name.removeprefix("cuda-py")
    packages = folder / f"lib/python{version}/site-packages"
    packages.mkdir(parents=True, exist_ok=True)
    link = packages / PACKAGE
    link.unlink(missing_ok=True)
    link.symlink_to(Path(edged.__file__).parent)
    own = folder / "bin/python"
    own.parent.mkdir(exist_ok=True)
    # of edged it sees the link, as the real one does, and before it what the caller names
    paths = f"${{PYTHONPATH:+$PYTHONPATH:}}{packages}"
    own.write_text(f'#!/bin/sh\nPYTHONPATH="{paths}" exec "{python}" "$@"\n')
    own.chmod(0o755)
    stamp = Stamp(version, lmdeploy, torch, "borrowed", "import")
    (folder / STAMP).write_bytes(msgspec.json.encode(stamp))
    return folder


if __name__ == "__main__":
    print(borrow(sys.argv[1], Path(sys.argv[2])))
