"""Memory has places: the box's own, and that of each GPU. Sizes in bytes, by place."""

from __future__ import annotations

from collections.abc import Mapping

Sizes = Mapping[str, int]  # a place that is not named: none of it
MAIN = "main memory"


def gpu(index: int) -> str:
    """Return the name of a GPU's memory as a place."""
    return f"GPU {index}"


def total(*parts: Sizes) -> dict[str, int]:
    """Add up."""
    found: dict[str, int] = {}
    for part in parts:
        for place, size in part.items():
            found[place] = found.get(place, 0) + size
    return found


def less(whole: Sizes, part: Sizes) -> Sizes:
    """Return what is left of `whole`; negative where `part` is more."""
    return total(whole, {place: -size for place, size in part.items()})


def most(one: Sizes, other: Sizes) -> dict[str, int]:
    """Return the larger size of each place."""
    return {place: max(one.get(place, 0), other.get(place, 0)) for place in (*one, *other)}


def lacking(wanted: Sizes, available: Sizes) -> Sizes:
    """Return what `available` is short of; empty (false) where it is enough."""
    short = {place: size - available.get(place, 0) for place, size in wanted.items()}
    return {place: size for place, size in short.items() if size > 0}
