"""Which residents are worth a place on the disk, and writing them in the time there is.

The worker is about to leave: the supervisor waits, and perhaps another model for the memory. So the
hottest prefix comes first, and what would not be done in time is not begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from edged.log import get_logger
from edged.worker.llamacpp.pool import Pool
from edged.worker.llamacpp.prefixes import Prefixes
from edged.worker.llamacpp.runner import Runner
from edged.worker.llamacpp.saved import DiskError, SavedPrefixes
from edged.worker.llamacpp.sequence import Sequence

log = get_logger()

WORTH_A_FILE = 64  # tokens
_FIRST_GUESS = 200e6  # bytes a second, until the first file was written
_CAUTION = 0.8  # of the time that is left, for a file whose duration is only estimated


def hottest(residents: list[Sequence], *, cuttable: bool) -> list[Sequence]:
    """Return who is worth a file, the hottest first: uses times the tokens that it adds.

    Where memory can be cut, what a chosen one holds as well counts for nothing: the system prompt
    that twenty conversations share is written with one or a few of them.
    """
    tree: Prefixes[Sequence] = Prefixes()
    chosen: list[Sequence] = []
    left = {r: r.n_computed for r in residents if r.n_computed >= WORTH_A_FILE}
    while left:
        best = max(left, key=lambda r: (r.uses * left[r], r.used_at))
        del left[best]
        chosen.append(best)
        if cuttable:
            tree.put(best, best.group, best.tokens[: best.n_computed])
            for other in list(left):
                known = max(
                    (n for n, _ in tree.match(other.group, other.tokens[: other.n_computed])),
                    default=0,
                )
                left[other] = other.n_computed - known
                if left[other] < WORTH_A_FILE:
                    del left[other]
    return chosen


def save(
    pool: Pool,
    runner: Runner,
    saved: SavedPrefixes,
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Write the hottest residents within `limit_s`; return how many files were written.

    In the engine thread, with all operations of the pool carried out. Never raises for the disk.
    """
    started = clock()
    n = n_bytes = 0
    rate = 0.0
    whole = [resident for resident in pool.residents if pool.is_whole(resident)]
    for resident in hottest(whole, cuttable=saved.cuttable):
        there = saved.holder_of(resident)
        if there is not None:
            saved.keep(there)
            continue
        assert resident.slot is not None
        size = runner.state_bytes(resident.slot)
        left_s = limit_s - (clock() - started)
        if not size or size / (rate or _FIRST_GUESS) > left_s * _CAUTION:
            continue
        try:
            written = saved.write(resident, size, partial(runner.save, resident.slot))
        except DiskError as error:
            log.warning("prefixes.not_saved", reason=str(error))
            break
        if written is not None:
            n += 1
            n_bytes += size
            rate = n_bytes / max(clock() - started, 1e-6)
    if n:
        seconds = round(clock() - started, 3)
        log.info("prefixes.saved", n=n, bytes=n_bytes, seconds=seconds)
    return n
