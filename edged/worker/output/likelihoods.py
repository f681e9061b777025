"""Log-probabilities of tokens whose text is held back, and which of them a piece shows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from edged.protocol import Chosen
from edged.worker.output.parser import Piece


def shown(held: Sequence[tuple[Chosen, int]], piece: Piece) -> list[Chosen]:
    """Return those of the tokens whose text `piece` shows; `held`: with lengths in bytes."""
    if not piece.content:
        return []  # they made a call
    if not piece.content[0].isspace():  # the space after the reasoning is not shown
        held = list(itertools.dropwhile(lambda one: one[0].text.isspace(), held))
    if not piece.stopped:
        return [likelihood for likelihood, _ in held]
    # What comes after the content is the stop string's.
    n, found = len(piece.content.encode()), []
    for likelihood, n_bytes in held:
        if n <= 0:
            break
        found.append(likelihood)
        n -= n_bytes
    return found
