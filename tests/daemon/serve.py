"""`edged serve` with the fake worker instead of the real one, and with short waits.

python serve.py CONFIG FINISH_S [real]

What a test cannot do to a real box it plays through the environment: EDGED_TEST_GPUS is a file with
the names of GPUs, a line each, EDGED_TEST_SLEPT one with the seconds that the box has slept, and
EDGED_TEST_WALL a number of days by which the wall clock jumps to and fro at each look.

EDGED_TEST_HEAD_S and EDGED_TEST_UNREAD_S are what a slow client gets.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path

from edged import daemon, log
from edged.daemon import listeners, surroundings
from edged.hardware import nvml
from edged.supervisor.worker_process import WORKER_ARGV
from tests.daemon.support import FAKE_WORKER, LIMITS
from tests.nvml import GIB, Nvml, named


def play() -> None:
    if gpus := os.environ.get("EDGED_TEST_GPUS"):
        nvml.load = lambda: driver(Path(gpus).read_text().splitlines())
    if slept := os.environ.get("EDGED_TEST_SLEPT"):
        surroundings.sleep_s = lambda: float(Path(slept).read_text())
    if days := os.environ.get("EDGED_TEST_WALL"):
        wall, jumps = time.time, itertools.cycle((1, -1))
        time.time = lambda: wall() + next(jumps) * float(days) * 86_400


def driver(gpus: list[str]) -> Nvml:
    """Return one that says of each worker that it takes a GiB of each GPU."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    used = tuple((int(pid), GIB) for pid in children)
    return Nvml([gpu._replace(processes=used) for gpu in named(*gpus)])


if __name__ == "__main__":
    log.configure()
    play()
    path, finish_s, *real = sys.argv[1:]
    listeners._HEAD_S = float(os.environ.get("EDGED_TEST_HEAD_S", listeners._HEAD_S))
    listeners._UNREAD_S = float(os.environ.get("EDGED_TEST_UNREAD_S", listeners._UNREAD_S))
    worker_argv = WORKER_ARGV if real else FAKE_WORKER
    sys.exit(daemon.run(path, worker_argv=worker_argv, limits=LIMITS, finish_s=float(finish_s)))
