"""Who leaves when a model needs room. Pure decisions over figures that others measured."""

from __future__ import annotations

from msgspec import Struct


class Resident(Struct, frozen=True):
    """A loaded model: what it takes in bytes, and when it last served (any monotonic clock, s)."""

    model: str
    bytes: int
    busy: bool
    pinned: bool
    last_used: float
