"""The books of the KV pool: which cell is used by whom, without touching llama.cpp.

Pure. llama.cpp frees a cell when its last sequence leaves it; the same is counted here, so that
the scheduler knows before a decode whether it will find room.
"""

from __future__ import annotations


class Cells:
    """`total` cells with two counts each: users, and users that run (are not resident)."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))
        self._users = [0] * total
        self._runners = [0] * total
        self._n_held = 0

    @property
    def free(self) -> int:
        """Cells that nobody uses."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Cells with at least one user."""
        return self.total - len(self._free)

    @property
    def evictable(self) -> int:
        """Cells that only residents use."""
        return self.used - self._n_held

    def take(self, n: int) -> list[int]:
        """Return `n` fresh cells for a running sequence; the caller has checked `free`."""
        assert n <= len(self._free)
        cut = len(self._free) - n
        taken = self._free[cut:]
        del self._free[cut:]
        for cell in taken:
            self._users[cell] = self._runners[cell] = 1
        self._n_held += n
        return taken

    def share(self, cells: list[int]) -> None:
        """Count one more running user of each cell."""
        for cell in cells:
            self._users[cell] += 1
        self.hold(cells)

    def hold(self, cells: list[int]) -> None:
        """Count a resident user of these cells as running again."""
        for cell in cells:
            self._n_held += self._runners[cell] == 0
            self._runners[cell] += 1

    def rest(self, cells: list[int]) -> None:
        """Count a running user of these cells as resident."""
        for cell in cells:
            self._runners[cell] -= 1
            self._n_held -= self._runners[cell] == 0

    def release(self, cells: list[int]) -> None:
        """Take a resident user off these cells (a running one rests first)."""
        for cell in cells:
            self._users[cell] -= 1
            if self._users[cell] == 0:
                self._free.append(cell)

    def unheld(self, cells: list[int]) -> int:
        """Return how many of these cells only residents use."""
        return sum(self._runners[cell] == 0 for cell in cells)

    def own(self, cells: list[int]) -> int:
        """Return how many of these cells would be free if their holder left."""
        return sum(self._users[cell] == 1 for cell in cells)
