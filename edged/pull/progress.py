"""How far a pull is: what its caller is told, and the child's lines to the daemon."""

from __future__ import annotations

from msgspec import Struct


class Progress(Struct, frozen=True):
    """How far one source is. `bytes_per_s` and `left_s` are None until they can be told."""

    source: str
    file: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_s: float | None = None
    left_s: float | None = None
    note: str = ""  # what is going on beside plain fetching

    @property
    def fraction(self) -> float:
        """0 to 1."""
        return self.done_bytes / self.total_bytes if self.total_bytes else 0.0


class Ended(Struct, frozen=True, tag="ended"):
    """The last line. `passing`: the same may go well later, without anybody's doing."""

    error: str | None = None
    passing: bool = False


class Went(Struct, frozen=True, tag="went"):
    """One step on the way."""

    progress: Progress


Line = Ended | Went
