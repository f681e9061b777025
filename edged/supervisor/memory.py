"""Who gets memory, who leaves for it, and who waits how long. Pure: figures in, decisions out.

All times are of one monotonic clock, in s, and the caller brings it; all sizes in bytes, by place.
A model fits where each place has enough for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from edged.config.values import format_bytes
from edged.errors import InsufficientMemory
from edged.plan.places import MAIN, Sizes, lacking, less, total
from edged.supervisor.lifecycle import Limits

_RETRY_AFTER_S = 5  # a busy model may have become idle by then
_LEAST_LOAD_S = 0.5  # of a file that the kernel still had in memory


class Resident(Struct, frozen=True):
    """A loaded model: what it takes and how it is used."""

    model: str
    sizes: Sizes
    busy: bool  # requests are open or wait
    pinned: bool
    last_used: float
    load_s: float = 0.0  # what its return would take
    ready_at: float = 0.0
    leaving: bool = False  # its memory comes back by itself


class Claim(Struct, frozen=True):
    """A model that needs memory. `since`: its oldest waiting request; None: nobody waits for it."""

    model: str
    sizes: Sizes
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
    budgets: Sizes,
    now: float,
    limits: Limits,
) -> Decision:
    """Return what to do for `claim`, while `others` wait for memory as well.

    The claim that has waited longest comes first; a younger one is granted only what the older
    ones can do without. Raises InsufficientMemory when waiting cannot help, or, where nobody waits
    for the model, when a busy one would have to leave for it.
    """
    free = less(budgets, _held(running))
    if not lacking(claim.sizes, free):
        first = _is_first(claim, others) or _leaves_room(claim, others, running, free)
        return Decision(granted=first)
    coming = _held(resident for resident in running if resident.leaving)
    staying = [resident for resident in running if not resident.leaving]
    idle = [resident for resident in staying if not (resident.busy or resident.pinned)]
    busy = [resident for resident in staying if resident.busy and not resident.pinned]
    missing = lacking(claim.sizes, total(free, coming))
    if lacking(missing, _held(idle if claim.since is None else [*idle, *busy])):
        raise insufficient(claim.sizes, running, budgets)
    if not missing or not _is_first(claim, others):
        return Decision()
    movable = [resident for resident in idle if not _stays(resident, now, limits)]
    if not lacking(missing, _held(movable)):
        return Decision(evict=_fewest(movable, missing, now))
    rest = lacking(missing, _held(idle))
    if claim.since is None or not rest:
        return Decision()  # those that are idle now have their time, and then leave
    yielding = [resident for resident in busy if not _stays(resident, now, limits)]
    if now - claim.since < limits.patience_s or lacking(rest, _held(yielding)):
        return Decision()
    give_way = _fewest(yielding, rest, now)
    gained = _held(resident for resident in yielding if resident.model in give_way)
    return Decision(evict=_fewest(idle, lacking(missing, gained), now), give_way=give_way)


def room_beside(
    wanted: Sizes, claims: Iterable[Claim], running: Sequence[Resident], budgets: Sizes
) -> bool:
    """Return whether a worker fits beside claims and all that runs, its predecessor included."""
    claimed = total(*(claim.sizes for claim in claims))
    return not lacking(wanted, less(budgets, total(_held(running), claimed)))


def over_budget(running: Sequence[Resident], budget_bytes: int, now: float) -> tuple[str, ...]:
    """Return the idle models that must leave because others grew; () when all is within.

    Of main memory only: what a worker takes of a GPU it takes when it loads.
    """
    staying = [resident for resident in running if not resident.leaving]
    missing = lacking(_held(staying), {MAIN: budget_bytes}).get(MAIN, 0)
    idle = [resident for resident in staying if not (resident.busy or resident.pinned)]
    return _fewest(idle, {MAIN: min(missing, _held(idle).get(MAIN, 0))}, now)


def _is_first(claim: Claim, others: Sequence[Claim]) -> bool:
    return all(_rank(claim) <= _rank(other) for other in others)


def _rank(claim: Claim) -> tuple[bool, float, str]:
    since = claim.since
    return since is None, claim.asked_at if since is None else since, claim.model


def _leaves_room(
    claim: Claim, others: Sequence[Claim], running: Sequence[Resident], free: Sizes
) -> bool:
    """Return whether the first claim can still be satisfied once this one holds its memory."""
    first = min(others, key=_rank)
    gained = _held(resident for resident in running if not resident.pinned)
    return not lacking(first.sizes, less(total(free, gained), claim.sizes))


def _stays(resident: Resident, now: float, limits: Limits) -> bool:
    """Return whether a model's minimum residency holds: it is in use and its load must pay."""
    stay_s = min(max(limits.stay_loads * resident.load_s, limits.stay_least_s), limits.stay_most_s)
    in_use = resident.busy or now - resident.last_used < limits.linger_s
    return in_use and now - resident.ready_at < stay_s


def _fewest(candidates: Sequence[Resident], missing: Sizes, now: float) -> tuple[str, ...]:
    """Return whose leaving gives back `missing`, and none that is not needed.

    Those longest unused go first, a model that loads fast before one that loads slowly.
    """

    def worth_least(resident: Resident) -> float:
        return (now - resident.last_used) / (resident.load_s + _LEAST_LOAD_S)

    leaving: list[Resident] = []
    for resident in sorted(candidates, key=worth_least, reverse=True):
        rest = lacking(missing, _held(leaving))
        if any(resident.sizes.get(place, 0) > 0 for place in rest):
            leaving.append(resident)
    # a large one that left last may have made the leaving of smaller ones needless
    for resident in reversed(tuple(leaving)):
        fewer = [each for each in leaving if each is not resident]
        if not lacking(missing, _held(fewer)):
            leaving = fewer
    return tuple(resident.model for resident in leaving)


def _held(residents: Iterable[Resident]) -> Sizes:
    return total(*(resident.sizes for resident in residents))


# ── in words ──


def insufficient(
    wanted: Sizes, running: Sequence[Resident], budgets: Sizes, waited_s: float = 0.0
) -> InsufficientMemory:
    """Return the error that says what is in use of the place that is short, and by whom."""
    for place in lacking(wanted, budgets):
        return InsufficientMemory(_never(place, wanted[place], budgets.get(place)))
    place = next(iter(lacking(wanted, less(budgets, _held(running)))), MAIN)
    size, budget = format_bytes(wanted.get(place, 0)), format_bytes(budgets.get(place, 0))
    holders = [resident for resident in running if resident.sizes.get(place, 0) > 0]
    held = "; ".join(
        f"{resident.model} holds {format_bytes(resident.sizes[place])} ({_why_it_stays(resident)})"
        for resident in holders
    )
    of = f"the {budget} for models" if place == MAIN else f"the {budget} of {place}"
    waited = f" after waiting {waited_s:.0f} s" if waited_s else ""
    waits = any(not resident.pinned for resident in holders)
    return InsufficientMemory(
        f"needs {size} of {of}{waited}: {held}",
        retry_after_s=_RETRY_AFTER_S if waits else None,
    )


def _never(place: str, wanted: int, budget: int | None) -> str:
    needs = f"needs {format_bytes(wanted)}"
    if budget is None:
        return f"{needs} of {place}, which is not there"
    has = f"has {format_bytes(budget)} for models in all"
    return f"{needs}, and the box {has}" if place == MAIN else f"{needs} of {place}, which {has}"


def _why_it_stays(resident: Resident) -> str:
    if resident.pinned:
        return "pinned"
    if resident.leaving:
        return "leaving"
    return "busy" if resident.busy else "idle"
