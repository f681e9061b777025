"""Where a sequence pauses, so that its memory of that place can be kept beside it.

Pure. Recurrent and hybrid models have one state a sequence: it serves a prompt only at the very
place where it stands, and it stands at a place only in passing. Layers with a window forget what
lies behind it. So whatever another prompt may want is kept while the sequence is just there: as a
resident of that length, a checkpoint, which shares cells and state with it and costs a slot.

Two places pay. Where another prompt, running or resident, says something else for the first time:
what stands before it is a system prompt or the like, and others will begin with it. And the border
behind which the next turn of this conversation may differ (`Sequence.border`).
"""

from __future__ import annotations

from edged.worker.llamacpp.sequence import Sequence


def plan(sequence: Sequence, start: int, agreed: int, worth: int) -> None:
    """Choose the stops of a sequence that begins with `start` tokens computed.

    `agreed`: how far the longest match with anyone goes, usable or not. `worth`: tokens that a
    checkpoint must save its users.
    """
    for place in (agreed, sequence.border):
        if place - start >= worth:
            stop_at(sequence, place)


def stop_at(sequence: Sequence, place: int) -> None:
    """Let a sequence pause at a place, unless it is behind it or inside of an image."""
    if sequence.floor(place) == place and sequence.n_computed < place < len(sequence.tokens):
        sequence.stops.add(place)


def until_stop(sequence: Sequence) -> int:
    """Return how many tokens a sequence may compute at once before it has to pause."""
    ahead = [stop for stop in sequence.stops if stop > sequence.n_computed]
    return min(ahead, default=len(sequence.tokens)) - sequence.n_computed


def due(sequence: Sequence) -> bool:
    """Tell whether a sequence has just reached one of its stops, which is over with that."""
    if sequence.n_computed not in sequence.stops:
        return False
    sequence.stops.discard(sequence.n_computed)
    return True
