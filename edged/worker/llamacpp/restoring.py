"""Saved prefixes come back: a request that matches one waits for its file, then goes on from it.

The file is read and checked in a thread of its own, while the engine's steps go on; only the copy
into the cells takes the engine thread. Whatever fails, the request is computed as ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from edged.log import get_logger
from edged.worker.llamacpp import saved_file
from edged.worker.llamacpp.pool import Pool
from edged.worker.llamacpp.runner import Runner
from edged.worker.llamacpp.saved import SavedPrefixes
from edged.worker.llamacpp.saved_file import SavedPrefix
from edged.worker.llamacpp.sequence import Sequence
from edged.worker.llamacpp.step import Operation

log = get_logger()

_WORTH_READING = 64  # tokens that a file must offer beyond what is in memory


class State(NamedTuple):
    """A file's content, on its way to the engine thread; None: it was not what it should be."""

    prefix: SavedPrefix
    content: memoryview | None


class Restoring:
    """Sequences that wait for a file. Used in the engine thread only."""

    def __init__(
        self,
        saved: SavedPrefixes,
        runner: Runner,
        pool: Pool,
        *,
        carry_out: Callable[[list[Operation]], None],
        arrived: Callable[[State], None],
    ) -> None:
        """`carry_out`: does operations; `arrived` is called in the reading thread."""
        self.n_tokens = 0  # restored since the start
        self.n_waiting = 0  # sequences
        self._saved = saved
        self._runner = runner
        self._pool = pool
        self._carry_out = carry_out
        self._arrived = arrived
        self._waiting: dict[SavedPrefix, list[Sequence]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="prefixes")

    def hold(self, sequence: Sequence) -> bool:
        """Begin to read what the sequence can use; False: nothing on the disk is worth it.

        If True, it comes back from `restore`.
        """
        prefix, n = self._saved.best(sequence)
        if prefix is None:
            return False
        found = self._pool.choose(sequence)
        in_memory = max(found.n, found.wait_for[1] if found.wait_for else 0)
        if n - in_memory < _WORTH_READING or not self._pool.has_room(len(prefix.tokens)):
            return False
        others = self._waiting.get(prefix)
        if others is not None:
            others.append(sequence)
        else:
            self._waiting[prefix] = [sequence]
            self._reader.submit(self._read, prefix)
        self.n_waiting += 1
        return True

    def drop(self, sequence: Sequence) -> bool:
        """Let a sequence wait no longer; False if it does not."""
        for waiting in self._waiting.values():
            if sequence in waiting:
                waiting.remove(sequence)
                self.n_waiting -= 1
                return True
        return False

    def _read(self, prefix: SavedPrefix) -> None:
        """Read a file, in the reading thread."""
        content = None
        try:
            content = saved_file.read(prefix)
        finally:
            self._arrived(State(prefix, content))

    def restore(self, state: State) -> list[Sequence]:
        """Make a resident of what was read; return the sequences that waited for it."""
        prefix, content = state
        if content is None:
            log.warning("prefixes.unreadable", file=str(prefix.path))
            self._saved.remove(prefix)
        elif self._waiting[prefix]:
            self._adopt(prefix, content)
        sequences = self._waiting.pop(prefix)
        self.n_waiting -= len(sequences)
        return sequences

    def _adopt(self, prefix: SavedPrefix, content: memoryview) -> None:
        started = time.monotonic()
        resident = self._pool.adopt(prefix.group, prefix.tokens, prefix.spans, prefix.uses)
        if resident is None:
            return
        assert resident.slot is not None
        self._carry_out(self._pool.take_operations())
        if not self._runner.restore(resident.slot, content):
            log.warning("prefixes.unusable", file=str(prefix.path))
            self._pool.evict(resident)
            self._carry_out(self._pool.take_operations())
            self._saved.remove(prefix)
            return
        if self._runner.facts.window:  # what lies behind it is not in the file
            resident.lost = max(0, self._runner.first_position(resident.slot))
        self._saved.used(prefix)
        self.n_tokens += len(prefix.tokens)
        log.info(
            "prefixes.restored",
            tokens=len(prefix.tokens),
            bytes=prefix.n_bytes,
            seconds=round(time.monotonic() - started, 4),
        )

    def close(self) -> None:
        """Read no more."""
        self._reader.shutdown(wait=False, cancel_futures=True)
