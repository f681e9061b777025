"""What a process does, as the kernel tells it, of real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edged.supervisor import footprint
from edged.supervisor.footprint import Waits

_SPIN = "while True: pass"
_REST = "import time; time.sleep(600)"
_OTHERS_SPIN = f"""
import threading, time
def spin():
    {_SPIN}
threading.Thread(target=spin, daemon=True).start()
time.sleep(600)
"""


@contextmanager
def process(program: str) -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", program])
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    ("program", "waits"),
    [
        (_SPIN, Waits(first=True, others=False)),
        (_OTHERS_SPIN, Waits(first=False, others=True)),
        (_REST, Waits(first=False, others=False)),
    ],
)
def test_threads_that_want_a_cpu_are_told_from_those_that_rest(program: str, waits: Waits) -> None:
    with process(program) as pid:
        end = time.monotonic() + 60
        while footprint.waits(pid) != waits:
            assert time.monotonic() < end, footprint.waits(pid)


def test_stopped_process_waits_for_nothing_and_does_nothing() -> None:
    with process(_SPIN) as pid:
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        assert footprint.is_stopped(pid)
        assert footprint.waits(pid) == Waits(first=False, others=False)
        before = footprint.read(pid)
        after = footprint.read(pid)
        assert before is not None
        assert after is not None
        assert (before.loop_s, before.engine_s) == (after.loop_s, after.engine_s)


def test_time_of_the_first_thread_is_told_from_that_of_the_others() -> None:
    with process(_OTHERS_SPIN) as pid:
        end = time.monotonic() + 60
        while (usage := footprint.read(pid)) is None or usage.engine_s < 1:
            assert time.monotonic() < end
        assert usage.loop_s < usage.engine_s


def test_process_that_is_gone_is_no_error() -> None:
    with process(_REST) as pid:
        pass
    assert footprint.read(pid) is None
    assert not footprint.is_stopped(pid)
    assert footprint.waits(pid) == Waits(first=False, others=False)
