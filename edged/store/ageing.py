"""How old something is, by a clock that nobody can set, also over restarts.

`OwnClock` begins near the wall clock and then goes by the kernel's time since boot, sleep included.
A note that it leaves now and then lets its successor go on from there: exactly where the box is
still up, else by as much as the wall clock went on since then, which may be nothing and never less.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SCHEMA = """
CREATE TABLE IF NOT EXISTS clock (
    own_s REAL NOT NULL, wall_s REAL NOT NULL, up_s REAL NOT NULL, boot TEXT NOT NULL
);
"""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Moment(NamedTuple):
    """One look at the clocks of the box, in s."""

    wall_s: float  # since the epoch, if it is right
    up_s: float  # since the boot
    boot: str  # which boot; "" where the kernel does not tell


class Note(NamedTuple):
    """What an own clock showed at some moment."""

    own_s: float
    moment: Moment


def look() -> Moment:
    """Return this moment."""
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return Moment(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot)


class OwnClock:
    """Seconds that only go on. `note`: the last one of an earlier clock, None if there is none.

    `least_s`: what it has to be past already. `look`: how to look at the box's clocks.
    """

    def __init__(
        self, note: Note | None, *, least_s: float = 0.0, look: Callable[[], Moment] = look
    ) -> None:
        self._look = look
        began = look()
        self._began = Note(max(least_s, _resumed(note, began)), began)

    def note(self) -> Note:
        """Return what it shows now."""
        now = self._look()
        return Note(self._began.own_s + max(0.0, now.up_s - self._began.moment.up_s), now)


def _resumed(note: Note | None, now: Moment) -> float:
    if note is None:
        return now.wall_s
    then = note.moment
    if then.boot and then.boot == now.boot:
        return note.own_s + max(0.0, now.up_s - then.up_s)
    return note.own_s + max(0.0, now.wall_s - then.wall_s)


# ── the note, in a database's table ──


def resume(db: sqlite3.Connection, least_s: float, look: Callable[[], Moment] = look) -> OwnClock:
    """Return a clock that goes on from where the one of this database was, past `least_s`."""
    found = db.execute("SELECT own_s, wall_s, up_s, boot FROM clock").fetchone()
    note = Note(found[0], Moment(*found[1:])) if found else None
    return OwnClock(note, least_s=least_s, look=look)


def keep(db: sqlite3.Connection, clock: OwnClock) -> None:
    """Leave a note, in the caller's transaction."""
    own_s, moment = clock.note()
    db.execute("DELETE FROM clock")
    db.execute("INSERT INTO clock VALUES (?, ?, ?, ?)", (own_s, *moment))
