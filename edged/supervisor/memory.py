"""Who gets memory, who leaves for it, and who waits how long. Pure: figures in, decisions out.

All times are of one monotonic clock, in s, and the caller brings it; all sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from edged.config.values import format_bytes
from edged.errors import InsufficientMemory
from edged.supervisor.lifecycle import Limits

_RETRY_AFTER_S = 5  # a busy model may have become idle by then
_LEAST_LOAD_S = 0.5  # of a file that the kernel still had in memory


class Resident(Struct, frozen=True):
    """A loaded model: what it takes and how it is used."""

    model: str
    bytes: int
    busy: bool  # requests are open or wait
    pinned: bool
    last_used: float
    load_s: float = 0.0  # what its return would take
    ready_at: float = 0.0
    leaving: bool = False  # its memory comes back by itself


class Claim(Struct, frozen=True):
    """A model that needs memory. `since`: its oldest waiting request; None: nobody waits for it."""

    model: str
    bytes: int
    asked_at: float
    since: float | None = None


class Decision(Struct, frozen=True):
    """What a claim comes to. Neither granted nor anybody to leave: wait, and ask again."""

    granted: bool = False
    evict: tuple[str, ...] = ()  # idle: may leave at once
    give_way: tuple[str, ...] = ()  # busy: admit nothing more, finish what runs, leave


def decide(
    claim: Claim,
    others: Sequence[Claim],
    running: Sequence[Resident],
    *,
    budget_bytes: int,
    now: float,
    limits: Limits,
) -> Decision:
    """Return what to do for `claim`, while `others` wait for memory as well.

    The claim that has waited longest comes first; a younger one is granted only what the older
    ones can do without. Raises InsufficientMemory when waiting cannot help, or, where nobody waits
    for the model, when a busy one would have to leave for it.
    """
    free = budget_bytes - _total(running)
    if claim.bytes <= free:
        first = _is_first(claim, others) or _leaves_room(claim, others, running, free)
        return Decision(granted=first)
    staying = [resident for resident in running if not resident.leaving]
    idle = [resident for resident in staying if not (resident.busy or resident.pinned)]
    busy = [resident for resident in staying if resident.busy and not resident.pinned]
    missing = claim.bytes - free - (_total(running) - _total(staying))
    if missing > _total(idle) + (0 if claim.since is None else _total(busy)):
        raise insufficient(claim.bytes, running, budget_bytes)
    if missing <= 0 or not _is_first(claim, others):
        return Decision()
    movable = [resident for resident in idle if not _stays(resident, now, limits)]
    if missing <= _total(movable):
        return Decision(evict=_fewest(movable, missing, now))
    if claim.since is None or missing <= _total(idle):
        return Decision()  # those that are idle now have their time, and then leave
    yielding = [resident for resident in busy if not _stays(resident, now, limits)]
    if now - claim.since < limits.patience_s or missing > _total(idle) + _total(yielding):
        return Decision()
    rest = missing - _total(idle)
    give_way = _fewest(yielding, rest, now)
    gained = sum(resident.bytes for resident in yielding if resident.model in give_way)
    return Decision(evict=_fewest(idle, missing - gained, now), give_way=give_way)


def room_beside(wanted_bytes: int, running: Sequence[Resident], budget_bytes: int) -> bool:
    """Return whether a worker fits beside everything that runs, its own predecessor included."""
    return wanted_bytes + _total(running) <= budget_bytes


def over_budget(running: Sequence[Resident], budget_bytes: int, now: float) -> tuple[str, ...]:
    """Return the idle models that must leave because others grew; () when all is within."""
    missing = _total([each for each in running if not each.leaving]) - budget_bytes
    if missing <= 0:
        return ()
    idle = [each for each in running if not (each.busy or each.pinned or each.leaving)]
    return _fewest(idle, min(missing, _total(idle)), now)


def _is_first(claim: Claim, others: Sequence[Claim]) -> bool:
    return all(_rank(claim) <= _rank(other) for other in others)


def _rank(claim: Claim) -> tuple[bool, float, str]:
    since = claim.since
    return since is None, claim.asked_at if since is None else since, claim.model


def _leaves_room(
    claim: Claim, others: Sequence[Claim], running: Sequence[Resident], free: int
) -> bool:
    """Return whether the first claim can still be satisfied once this one holds its memory."""
    first = min(others, key=_rank)
    gained = _total([each for each in running if not each.pinned])
    return first.bytes <= free + gained - claim.bytes


def _stays(resident: Resident, now: float, limits: Limits) -> bool:
    """Return whether a model's minimum residency holds: it is in use and its load must pay."""
    stay_s = min(max(limits.stay_loads * resident.load_s, limits.stay_least_s), limits.stay_most_s)
    in_use = resident.busy or now - resident.last_used < limits.linger_s
    return in_use and now - resident.ready_at < stay_s


def _fewest(candidates: Sequence[Resident], missing: int, now: float) -> tuple[str, ...]:
    """Return whose leaving gives back `missing`, and none that is not needed.

    Those longest unused go first, a model that loads fast before one that loads slowly.
    """

    def worth_least(resident: Resident) -> float:
        return (now - resident.last_used) / (resident.load_s + _LEAST_LOAD_S)

    leaving: list[Resident] = []
    for resident in sorted(candidates, key=worth_least, reverse=True):
        if missing <= 0:
            break
        leaving.append(resident)
        missing -= resident.bytes
    # a large one that left last may have made the leaving of smaller ones needless
    for resident in reversed(tuple(leaving)):
        if missing + resident.bytes <= 0:
            leaving.remove(resident)
            missing += resident.bytes
    return tuple(resident.model for resident in leaving)


def _total(residents: Sequence[Resident]) -> int:
    return sum(resident.bytes for resident in residents)


def insufficient(
    wanted_bytes: int, running: Sequence[Resident], budget_bytes: int, waited_s: float = 0.0
) -> InsufficientMemory:
    """Return the error that says what is in use, and by whom."""
    wanted, budget = format_bytes(wanted_bytes), format_bytes(budget_bytes)
    if wanted_bytes > budget_bytes:
        return InsufficientMemory(f"needs {wanted}, and the box has {budget} for models in all")
    held = "; ".join(
        f"{resident.model} holds {format_bytes(resident.bytes)} ({_why_it_stays(resident)})"
        for resident in running
    )
    waits = any(not resident.pinned for resident in running)
    waited = f" after waiting {waited_s:.0f} s" if waited_s else ""
    return InsufficientMemory(
        f"needs {wanted} of the {budget} for models{waited}: {held}",
        retry_after_s=_RETRY_AFTER_S if waits else None,
    )


def _why_it_stays(resident: Resident) -> str:
    if resident.pinned:
        return "pinned"
    if resident.leaving:
        return "leaving"
    return "busy" if resident.busy else "idle"
