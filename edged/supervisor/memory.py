"""Who leaves when a model needs room. Pure decisions over figures that others measured."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from edged.config.values import format_bytes
from edged.errors import InsufficientMemory

_RETRY_AFTER_S = 5  # a busy model may have become idle by then


class Resident(Struct, frozen=True):
    """A loaded model: what it takes in bytes, and when it last served (any monotonic clock, s)."""

    model: str
    bytes: int
    busy: bool
    pinned: bool
    last_used: float


def room_for(wanted_bytes: int, running: Sequence[Resident], budget_bytes: int) -> tuple[str, ...]:
    """Return the models to evict so that `wanted_bytes` fit into the budget beside the rest.

    Only idle models without a pin leave, those longest unused first, and none whose leaving is
    not needed. Raises InsufficientMemory with the figures when that is not enough.
    """
    missing = wanted_bytes + sum(resident.bytes for resident in running) - budget_bytes
    leaving: list[Resident] = []
    for resident in sorted(running, key=lambda resident: resident.last_used):
        if missing <= 0:
            break
        if not resident.busy and not resident.pinned:
            leaving.append(resident)
            missing -= resident.bytes
    if missing > 0:
        raise _insufficient(wanted_bytes, running, budget_bytes)
    # a large one that left last may have made the leaving of smaller ones needless
    for resident in reversed(tuple(leaving)):
        if missing + resident.bytes <= 0:
            leaving.remove(resident)
            missing += resident.bytes
    return tuple(resident.model for resident in leaving)


def _insufficient(
    wanted_bytes: int, running: Sequence[Resident], budget_bytes: int
) -> InsufficientMemory:
    wanted, budget = format_bytes(wanted_bytes), format_bytes(budget_bytes)
    if wanted_bytes > budget_bytes:
        return InsufficientMemory(f"needs {wanted}, and the box has {budget} for models in all")
    staying = [resident for resident in running if resident.busy or resident.pinned]
    names = ", ".join(
        f"{resident.model} ({'pinned' if resident.pinned else 'busy'})" for resident in staying
    )
    held = format_bytes(sum(resident.bytes for resident in staying))
    waits = any(resident.busy and not resident.pinned for resident in staying)
    return InsufficientMemory(
        f"needs {wanted} of the {budget} for models, and {held} are held by {names}",
        retry_after_s=_RETRY_AFTER_S if waits else None,
    )
