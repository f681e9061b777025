"""Changes of a file that come when nobody looks yet."""

from __future__ import annotations

import asyncio
from pathlib import Path

from edged.daemon import watch


async def test_change_between_reading_and_watching_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text("")
    seen = watch.fingerprint(path)
    path.write_text("[server]\n")
    async with asyncio.timeout(60):
        async for _ in watch.changes(path, seen):
            break
