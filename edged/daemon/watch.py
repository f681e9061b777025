"""Tells when a file became something else: editors replace files, links are turned, folders go.

The folders are watched, not the file, and every few seconds the file is looked at anyway: that
covers what no event tells (a folder that was deleted and made again, a network file system).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

from watchfiles import awatch

from edged.log import get_logger

log = get_logger()

_LOOK_S = 2.0  # without any event
_SETTLE_S = 0.2  # a file that is still being written is not read
_SETTLE_MOST_S = 2.0  # … but one that never rests is

Fingerprint = tuple[str, int, int, int, int] | None


async def changes(path: Path, seen: Fingerprint) -> AsyncIterator[None]:
    """Yield whenever the file at `path` (or where its links lead) has changed and settled.

    `seen`: the file as it was before it was read, so that no change since then is lost.

    Changes that come while the caller is busy are not lost: they make one more item.
    """
    async with aclosing(_hints(path)) as hints:
        async for _ in hints:
            if fingerprint(path) == seen:
                continue
            seen = await _settled(path)
            yield


def fingerprint(path: Path) -> Fingerprint:
    """Return what differs whenever the file was written, replaced or given other rights."""
    try:
        found = path.stat()
    except OSError:
        return None
    target = os.path.realpath(path)
    return (target, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


async def _settled(path: Path) -> Fingerprint:
    give_up = time.monotonic() + _SETTLE_MOST_S
    before = fingerprint(path)
    while True:
        await asyncio.sleep(_SETTLE_S)
        now = fingerprint(path)
        if now == before or time.monotonic() >= give_up:
            return now
        before = now


async def _hints(path: Path) -> AsyncGenerator[None, None]:
    """Yield when it is worth to look at the file: after an event, and every _LOOK_S."""
    complained = False
    while True:
        folders = _folders(path)
        try:
            # New watches miss what happened before them.
            yield
            async with aclosing(_events(folders)) as events:
                async for _ in events:
                    yield
                    if _folders(path) != folders:
                        break
        except OSError as error:  # no folder, or no inotify watch left
            if folders and not complained:
                log.warning("watch.polling", path=str(path), reason=str(error))
                complained = True
            await asyncio.sleep(_LOOK_S)


def _folders(path: Path) -> dict[str, int]:
    """Return the folders of the link and of its target, each with its inode."""
    found = {}
    for folder in {path.parent, Path(os.path.realpath(path)).parent}:
        try:
            found[str(folder)] = folder.stat().st_ino
        except OSError:
            continue
    return found


async def _events(folders: dict[str, int]) -> AsyncGenerator[None, None]:
    if not folders:
        raise FileNotFoundError
    async for _ in awatch(
        *folders,
        watch_filter=None,
        debounce=100,
        step=100,
        rust_timeout=int(_LOOK_S * 1000),
        yield_on_timeout=True,
        recursive=False,
    ):
        yield
