"""LMDeploy's interpreter of a played box: `python -m tests.gpu.played.python ARGUMENTS`.

A worker, LMDeploy's api_server and its pipeline become programs of this folder that compute
nothing; everything else is left to the interpreter. So every figure that a rehearsal prints is
worthless; what it shows is that the checks and the benchmark run to their end.
"""

import os
import sys


def main() -> None:
    """Look at what is asked of the interpreter, and become it."""
    wanted = sys.argv[1:]
    if wanted[:2] == ["-m", "edged.worker"]:
        wanted[1] = "tests.gpu.played.worker"
    elif wanted[:2] == ["-m", "lmdeploy"]:
        wanted[1] = "tests.gpu.played.api_server"
    elif wanted and wanted[0].endswith("pipeline_peer.py"):
        wanted = ["-m", "tests.gpu.played.pipeline", *wanted]
    os.execv(sys.executable, [sys.executable, *wanted])  # noqa: S606 - as asked


if __name__ == "__main__":
    main()
