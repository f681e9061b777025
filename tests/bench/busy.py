"""Decode while another program keeps one of two cores busy."""

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.decode import decode
from tests.bench.prompts import Prompts
from tests.bench.scenario import LLAMA_SERVER, Figures, Row, Scenario, Side, only_server
from tests.bench.servers import guarded

CLIENTS = (1, 4)
SETTLE_S = 8.0
TARGET = 1.5

# It ends with the benchmark even where that is killed and nothing guards it.
_BURN = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(100_000):
        pass
"""


def n_burners() -> int:
    """Return how many cores others keep busy: half of them."""
    return max(1, (os.cpu_count() or 1) // 2)


@contextlib.contextmanager
def burning() -> Iterator[list[int]]:
    """Run programs that do nothing but compute, one thread each; give their pids.

    None is pinned. A real program is not, and pinning would hold the thread of a peer that shares
    that core below its half, where the kernel's balancing gives each of three threads two thirds
    of a core: not pinned is the kinder choice for whoever keeps two threads.
    """
    command = guarded((sys.executable, "-c", _BURN, str(os.getpid())))
    programs = [
        # A session of its own, like the servers', in case the kernel groups by sessions.
        subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        for _ in range(n_burners())
    ]
    try:
        yield [program.pid for program in programs]
    finally:
        for program in programs:
            program.kill()
        for program in programs:
            program.wait()


async def _busy(side: Side, prompts: Prompts, n_clients: int) -> Figures:
    server = only_server(side)
    with burning() as pids:
        settled = time.monotonic() + SETTLE_S
        turn = 0
        while time.monotonic() < settled:
            await decode(server, prompts, n_clients, f"settle {turn}")
            turn += 1
        started_s, before_s = time.monotonic(), sum(map(_cpu_s, pids))
        found = await decode(server, prompts, n_clients, "busy")
        wall_s = time.monotonic() - started_s
        burnt_s = sum(map(_cpu_s, pids)) - before_s
    return {
        f"whole{n_clients}": found[f"whole{n_clients}"],
        f"burnt{n_clients}": burnt_s / wall_s / n_burners() * 100,
    }


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rows(n_clients: int) -> tuple[Row, Row]:
    clients = "1 client" if n_clients == 1 else f"{n_clients} clients"
    targets = {LLAMA_SERVER: TARGET}
    return (
        Row(f"whole{n_clients}", f"{clients}, whole", "tokens/s", True, targets),
        Row(f"burnt{n_clients}", f"{clients}: a core's time that the other got", "%", True),
    )


BUSY = Scenario(
    "busy",
    f"decode while {'another program computes' if n_burners() == 1 else 'others compute'} without "
    f"a pause ({n_burners()} of {os.cpu_count()} cores, not pinned); every side with the threads "
    f"that it chooses by itself and {SETTLE_S:.0f} s of the same load before each measurement",
    tuple(row for n in CLIENTS for row in _rows(n)),
    tuple(functools.partial(_busy, n_clients=n) for n in CLIENTS),
    own_threads=True,
)
