"""Requests that kill workers: recognised by what they ask for, and refused for a while.

Pure; the caller brings the clock (monotonic, s). A worker that dies with several requests open
makes all of them suspects. A suspect may come back, but no two of them run at once: the worker's
next death then tells which it was, and an answer clears its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from edged.protocol import Request

_DEATHS = 2
_MOST = 4096  # suspects; more than any worker holds


class Poison:
    """The suspects of one model."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._deaths: dict[bytes, tuple[int, float]] = {}  # and when the last one was

    def died(self, held: Iterable[Request], now: float) -> None:
        """Note that a worker died while it held these."""
        for key in {_digest(request) for request in held}:
            n, _ = self._deaths.get(key, (0, 0.0))
            self._deaths[key] = (n + 1, now)
        for key in sorted(self._deaths, key=lambda key: self._deaths[key][1])[:-_MOST]:
            del self._deaths[key]

    def deaths(self, request: Request, now: float) -> int:
        """Return how many deaths it is suspected of; cheap while there are no suspects."""
        if not self._deaths:
            return 0
        n, at = self._deaths.get(_digest(request), (0, now))
        if now - at >= self._keep_s:
            self._deaths = {k: v for k, v in self._deaths.items() if now - v[1] < self._keep_s}
            return 0
        return n

    def is_poison(self, request: Request, now: float) -> bool:
        """Return whether it is to be refused."""
        return self.deaths(request, now) >= _DEATHS

    def answered(self, request: Request) -> None:
        """Clear a suspect: it got its answer."""
        if self._deaths:
            self._deaths.pop(_digest(request), None)


def _digest(request: Request) -> bytes:
    plain = msgspec.structs.replace(request, id=0)
    return hashlib.sha256(msgspec.msgpack.encode(plain)).digest()
