"""Stored responses: what `POST /v1/responses` keeps so that a later request can go on from it.

One SQLite file (WAL), opened with the first use, touched only by a thread of its own: the loop
never waits for a disk. A row holds a whole response, as it went to the client, and the input
items of its request; a conversation is the chain of rows through `previous_id`.

Limits: rows that no request has used for `keep_s` go, and the longest unused ones until everything
together is below `max_bytes`. A request uses every row of its conversation. Their age goes by a
clock of the file's own (`ageing.py`), of which the table `clock` keeps a note.

A damaged file is put aside and a new one begun; a locked one or a full disk costs the rows that
could not be written. Neither stops an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from msgspec import Struct

from edged import errors
from edged.log import get_logger
from edged.store import ageing
from edged.store.ageing import Moment, OwnClock

log = get_logger()

_BUSY_S = 5.0
_TIDY_S = 600.0  # between two looks for what is too old
_PAGES_FREED = 2_000  # given back to the file system at once, so that no write waits long

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    previous_id TEXT,
    used_at REAL NOT NULL,
    status TEXT NOT NULL,
    body BLOB NOT NULL,
    input BLOB NOT NULL,
    events BLOB,
    n_bytes INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used_at);
CREATE TABLE IF NOT EXISTS items (
    id TEXT PRIMARY KEY,
    response_id TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_by_response ON items (response_id);
"""
_VERSION = 1  # of the schema; a file of another version is put aside
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_WHOLE = (
    "SELECT id, owner, previous_id, status, body, input, events"
    " FROM responses WHERE id = ? AND owner = ?"
)
_TURN = (  # of a conversation
    "SELECT id, owner, previous_id, status, body, input FROM responses WHERE id = ? AND owner = ?"
)
_OF_ITEM = "SELECT response_id FROM items WHERE id = ?"
_UNFINISHED = ("queued", "in_progress")

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Limits(Struct, frozen=True):
    """How long, in s, and how much, in bytes, is kept; 0 of either: nothing."""

    keep_s: float
    max_bytes: int

    @property
    def keeps_nothing(self) -> bool:
        """True when nothing is to be stored at all."""
        return self.keep_s <= 0 or self.max_bytes <= 0


class Row(Struct, frozen=True):
    """One stored response. `body` and `input` are JSON: a response object, a list of items."""

    id: str
    owner: str
    previous_id: str | None
    status: str
    body: bytes
    input: bytes
    events: bytes | None = None  # of a background stream, compressed by who wrote them
    item_ids: tuple[str, ...] = ()  # for `item`; empty in what is read

    @property
    def n_bytes(self) -> int:
        """What this row takes, but for SQLite's own share."""
        ids = sum(map(len, self.item_ids))
        return len(self.body) + len(self.input) + len(self.events or b"") + 2 * ids + 256


class _OtherVersionError(sqlite3.DatabaseError):
    """The file is sound, but its tables are not ours."""


def _unavailable(error: sqlite3.Error) -> errors.ServiceUnavailable:
    return errors.ServiceUnavailable(f"the stored responses cannot be read now: {error}")


def _in_thread(
    work: Callable[Concatenate[Responses, _P], _T],
) -> Callable[Concatenate[Responses, _P], asyncio.Future[_T]]:
    """Make a method run in the store's thread, once more on a new file if this one is damaged."""

    def run(self: Responses, /, *args: _P.args, **kwargs: _P.kwargs) -> asyncio.Future[_T]:
        def attempt() -> _T:
            try:
                return work(self, *args, **kwargs)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._put_aside(error)
                return work(self, *args, **kwargs)

        return asyncio.get_running_loop().run_in_executor(self._thread(), attempt)

    return run


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte: primary code
    return isinstance(error, _OtherVersionError) or code in _DAMAGE


class Responses:
    """The store. Methods are called in the loop; raises ServiceUnavailable if it cannot be read.

    `path` of the file; `limits` are asked for at each write, so that a reload changes them.
    """

    def __init__(
        self,
        path: Path,
        limits: Callable[[], Limits],
        look: Callable[[], Moment] = ageing.look,
    ) -> None:
        self._path = path
        self._limits = limits
        self._look = look
        self._executor: ThreadPoolExecutor | None = None
        # Below: the thread's own.
        self._db: sqlite3.Connection | None = None
        self._clock: OwnClock | None = None  # from the first opening on
        self._n_bytes = 0
        self._tidied_at = 0.0

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._limits()

    async def put(self, row: Row) -> bool:
        """Write or replace a row; return whether that worked. What did not is in the log."""
        try:
            await self._put(row)
        except (sqlite3.Error, OSError) as error:
            log.error("responses.not_stored", id=row.id, problem=str(error))  # noqa: TRY400
            return False
        return True

    async def get(self, row_id: str, owner: str) -> Row | None:
        """Return a row of this owner."""
        return await self._reading(self._get(row_id, owner))

    async def chain(self, row_id: str, owner: str, most_bytes: int) -> list[Row]:
        """Return the conversation that ends with this row, oldest first, and mark it as used.

        Rows come without their events. Raises PreviousResponseNotFound when a row of it is gone or
        another's, BodyTooLarge when it is longer than `most_bytes`.
        """
        return await self._reading(self._chain(row_id, owner, most_bytes))

    async def item(self, item_id: str, owner: str) -> Row | None:
        """Return the row of this owner that has an item, of its input or output, with this id."""
        return await self._reading(self._item(item_id, owner))

    async def delete(self, row_id: str, owner: str) -> bool:
        """Delete a row of this owner for good; return whether there was one."""
        return await self._reading(self._delete(row_id, owner))

    async def tidy(self) -> None:
        """Delete what is too old or too much, if there is a file at all. Never raises."""
        with contextlib.suppress(errors.ServiceUnavailable, OSError):
            if self._executor is not None or self._path.exists():
                await self._reading(self._tidy())

    async def close(self) -> None:
        """Close the file. The store opens it again when it is used again."""
        if self._executor is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._close)
            self._executor.shutdown(wait=False)
            self._executor = None

    async def _reading(self, work: asyncio.Future[_T]) -> _T:
        try:
            return await work
        except (sqlite3.Error, OSError) as error:
            log.error("responses.unreadable", problem=str(error))  # noqa: TRY400
            known = error if isinstance(error, sqlite3.Error) else sqlite3.Error(str(error))
            raise _unavailable(known) from None

    def _thread(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="responses")
        return self._executor

    # ── in the thread ──

    @_in_thread
    def _put(self, row: Row) -> None:
        db = self._open()
        with db:
            self._n_bytes += row.n_bytes - self._drop(db, "id = ?", (row.id,))
            db.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    row.id,
                    row.owner,
                    row.previous_id,
                    self._now(),
                    row.status,
                    row.body,
                    row.input,
                    row.events,
                    row.n_bytes,
                ),
            )
            # A client may send an item back under the id that it got: the first keeps it.
            db.executemany(
                "INSERT OR IGNORE INTO items VALUES (?, ?)",
                [(item_id, row.id) for item_id in row.item_ids],
            )
        self._prune(db)

    @_in_thread
    def _get(self, row_id: str, owner: str) -> Row | None:
        return self._one(_WHOLE, row_id, owner)

    @_in_thread
    def _item(self, item_id: str, owner: str) -> Row | None:
        found = self._open().execute(_OF_ITEM, (item_id,)).fetchone()
        return None if found is None else self._one(_TURN, found[0], owner)

    @_in_thread
    def _chain(self, row_id: str, owner: str, most_bytes: int) -> list[Row]:
        db = self._open()
        found: list[Row] = []
        wanted: str | None = row_id
        n_bytes = 0
        while wanted is not None:
            row = self._one(_TURN, wanted, owner)
            if row is None:
                raise _missing(wanted, of=row_id)
            found.append(row)
            n_bytes += len(row.body) + len(row.input)
            if n_bytes > most_bytes:
                raise errors.BodyTooLarge(
                    f"the conversation has more than the {most_bytes:,} bytes that "
                    "`server.max_body` allows; begin a new one",
                    param="previous_response_id",
                )
            wanted = row.previous_id
        with contextlib.suppress(sqlite3.OperationalError), db:  # a full disk: it just gets older
            db.executemany(
                "UPDATE responses SET used_at = ? WHERE id = ?",
                [(self._now(), row.id) for row in found],
            )
        return found[::-1]

    @_in_thread
    def _delete(self, row_id: str, owner: str) -> bool:
        db = self._open()
        with db:
            freed = self._drop(db, "id = ? AND owner = ?", (row_id, owner))
        self._n_bytes -= freed
        if freed:  # what was in the log is overwritten too
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return freed > 0

    @_in_thread
    def _tidy(self) -> None:
        self._prune(self._open())

    def _one(self, query: str, row_id: str, owner: str) -> Row | None:
        found = self._open().execute(query, (row_id, owner)).fetchone()
        return None if found is None else Row(*found)

    def _drop(self, db: sqlite3.Connection, where: str, values: Sequence[object]) -> int:
        """Delete rows inside the caller's transaction and return the sum of their n_bytes."""
        gone = db.execute(f"DELETE FROM responses WHERE {where} RETURNING n_bytes", values)  # noqa: S608 - our own words
        return sum(n_bytes for (n_bytes,) in gone.fetchall())

    def _prune(self, db: sqlite3.Connection) -> None:
        limits, now = self._limits(), self._now()
        if self._n_bytes <= limits.max_bytes and now - self._tidied_at < _TIDY_S:
            return
        self._tidied_at = now
        with db:
            self._keep_clock(db)
            freed = self._drop(db, "used_at <= ?", (now - limits.keep_s,))
            self._n_bytes -= freed
            while self._n_bytes > limits.max_bytes:
                oldest = "rowid IN (SELECT rowid FROM responses ORDER BY used_at, rowid LIMIT 16)"
                dropped = self._drop(db, oldest, ())
                if not dropped:
                    break
                freed += dropped
                self._n_bytes -= dropped
        if freed:
            log.info("responses.pruned", freed_bytes=freed, bytes=self._n_bytes)
            db.execute(f"PRAGMA incremental_vacuum({_PAGES_FREED})").fetchall()

    def _keep_clock(self, db: sqlite3.Connection) -> None:
        if self._clock is not None:
            ageing.keep(db, self._clock)

    def _now(self) -> float:
        assert self._clock is not None, "it is made with the file's opening"
        return self._clock.note().own_s

    # ── the file ──

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = self._connect()
            try:
                self._begin(self._db)
            except sqlite3.Error:
                self._close()
                raise
        return self._db

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its own mode to a file that it makes, and this one's to the log beside it.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._path.chmod(0o600)
        return sqlite3.connect(self._path, timeout=_BUSY_S, check_same_thread=False)

    def _begin(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (n_tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if n_tables and version != _VERSION:
            raise _OtherVersionError(f"made by another version of edged ({version})")
        if not n_tables:
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")  # a power cut costs the last answers, no more
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA secure_delete = ON")
        db.executescript(_SCHEMA + ageing.SCHEMA)
        db.execute(f"PRAGMA user_version = {_VERSION}")
        with db:
            # No background response survives its daemon; `body` still says what it was.
            db.execute(
                "UPDATE responses SET status = 'lost' WHERE status IN (?, ?)",
                _UNFINISHED,
            )
        (newest,) = db.execute("SELECT coalesce(max(used_at), 0) FROM responses").fetchone()
        self._clock = ageing.resume(db, newest, self._look)
        (n_bytes,) = db.execute("SELECT coalesce(sum(n_bytes), 0) FROM responses").fetchone()
        self._n_bytes = n_bytes

    def _put_aside(self, error: sqlite3.DatabaseError) -> None:
        self._clock = None  # nothing is written into that file any more
        self._close()
        aside = self._path.with_name(f"{self._path.name}.damaged-{int(self._look().wall_s)}")
        log.error("responses.damaged", problem=str(error), put_aside=str(aside))
        self._path.replace(aside)
        for tail in ("-wal", "-shm"):  # they belong to that file and would spoil the next
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self._path}{tail}").replace(f"{aside}{tail}")

    def _close(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error), self._db:
                self._keep_clock(self._db)
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None


def _missing(row_id: str, *, of: str) -> errors.EdgedError:
    what = f"previous response with id '{row_id[:100]}' not found"
    if row_id != of:
        what += f"; the conversation of '{of[:100]}' began before it and cannot be gone on with"
    return errors.PreviousResponseNotFound(what, param="previous_response_id")
