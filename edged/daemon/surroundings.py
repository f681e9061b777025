"""The hardware, watched: looked at again after a sleep of the box and after a failed launch.

A reload looks at it anyway. What was there once and is not any more is said until it is back: the
box is degraded, however well its models go on with the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable

from edged import hardware
from edged.config import HardwareOverrides
from edged.hardware import Hardware
from edged.log import get_logger

log = get_logger()

_LOOK_S = 2.0
_NAP_S = 2.0  # a shorter sleep of the box is none
_DOUBT_S = 30.0  # drivers need a while to come back, or to notice that a device does not


class Surroundings:
    """What the box has and had. `wish` asks for a reload; one owner, the daemon's loop."""

    def __init__(self, wish: Callable[[], None]) -> None:
        self.lost: tuple[str, ...] = ()  # a line for each thing that is gone
        self._wish = wish
        self._now: Hardware | None = None  # of the plan in force
        self._overrides = HardwareOverrides()
        self._had: Counter[str] = Counter()  # GPUs by name: the most that were seen of each
        self._wished_for: object = None
        self._doubted = asyncio.Event()
        self._doubt_until = 0.0

    def follow(self, now: Hardware, overrides: HardwareOverrides) -> None:
        """Take note of what the plan in force was made for, and tell what has changed."""
        there = _gpus(now)
        before = _gpus(self._now) if self._now else there
        if overrides != self._overrides:  # what nobody wants to use is not lost
            before = self._had = there
        for name in (before - there).elements():
            log.error(
                "hardware.lost",
                gpu=name,
                meaning="models that need it fail, others go on with what is left; "
                "`dmesg` may say why, and a reload looks again",
            )
        for name in (there - before).elements():
            log.warning("hardware.came", gpu=name)
        self._had |= there
        self._wished_for = None
        self._now, self._overrides = now, overrides
        self.lost = tuple(f"the GPU {n} is gone" for n in sorted((self._had - there).elements()))

    def doubt(self) -> None:
        """Look again, for a while: something happened that a lost device would explain."""
        self._doubt_until = time.monotonic() + _DOUBT_S
        self._doubted.set()

    async def run(self) -> None:
        """Look whenever there is doubt; each sleep of the box gives rise to some."""
        slept_s = sleep_s()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._doubted.wait(), _LOOK_S)
            self._doubted.clear()
            before_s, slept_s = slept_s, sleep_s()
            if slept_s - before_s >= _NAP_S:
                log.info("box.slept", seconds=round(slept_s - before_s))
                self._doubt_until = time.monotonic() + _DOUBT_S
            if time.monotonic() < self._doubt_until:
                await self._look()

    async def _look(self) -> None:
        # In a thread: a driver that is stuck must not hold up the streams.
        found = await asyncio.to_thread(hardware.detect, self._overrides)
        seen = _lasting(found)
        if self._now is None or seen in (_lasting(self._now), self._wished_for):
            return
        self._wished_for = seen  # once: a models.toml that is refused stays so
        self._wish()


def sleep_s() -> float:
    """Return how long the box has slept since it was booted, in s."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def _gpus(found: Hardware) -> Counter[str]:
    """Return GPUs by name and size; their numbers move when one falls out."""
    return Counter(f"{gpu.name} with {gpu.memory_bytes >> 20} MiB" for gpu in found.gpus)


def _lasting(found: Hardware) -> object:
    """Return what a plan depends on; memory that others take and give back is not of it."""
    memory = found.memory.total_bytes, found.memory.limit_bytes
    return found.cpu, memory, sorted(_gpus(found).elements()), found.engines
