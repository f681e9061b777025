"""What is announced, and that others find it, on loopback."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edged.cli.discover import browse
from edged.config import Listen, Server
from edged.daemon import mdns
from edged.daemon.mdns import Presence, Service, services
from tests.daemon.support import PATIENCE_S

OWN = ("127.0.0.1", "::1", "10.0.0.7", "192.168.1.7", "203.0.113.5", "fd00::7")
ALL_V4 = Listen("tcp", "0.0.0.0", 8000)
ALL_V6 = Listen("tcp", "::", 8000)


def test_only_what_others_can_reach_and_need_a_key_for() -> None:
    assert services(Server(), [Listen("tcp", "127.0.0.1", 8000)], OWN) == ()
    assert services(Server(), [Listen("unix", path="/run/x")], OWN) == ()
    assert services(Server(auth="none"), [ALL_V4], OWN) == ()
    assert services(Server(announce=False), [ALL_V4], OWN) == ()
    assert services(Server(), [ALL_V4], ("127.0.0.1",)) == ()


def test_addresses_are_those_of_allowed_networks() -> None:
    both = services(Server(), [ALL_V6, ALL_V4], OWN)
    assert both == (Service(8000, ("fd00::7", "10.0.0.7", "192.168.1.7")),)
    assert services(Server(), [Listen("tcp", "10.0.0.7", 8000)], OWN) == (
        Service(8000, ("10.0.0.7",)),
    )
    assert services(Server(allow=("192.168.0.0/16",)), [ALL_V4], OWN) == (
        Service(8000, ("192.168.1.7",)),
    )


def test_tls_is_a_service_of_its_own() -> None:
    tls = Listen("tcp", "0.0.0.0", 8443, tls=True)
    found = services(Server(), [ALL_V4, tls], ("10.0.0.7",))
    assert found == (Service(8000, ("10.0.0.7",)), Service(8443, ("10.0.0.7",), is_tls=True))


@asynccontextmanager
async def present(wanted: list[Service], **keys: Any) -> AsyncIterator[Presence]:
    presence = Presence(lambda: tuple(wanted), **keys)
    task = asyncio.create_task(presence.run())
    try:
        yield presence
    finally:
        task.cancel()
        await asyncio.wait([task])


async def urls(seconds: float = 1.0) -> set[str]:
    found = await asyncio.to_thread(browse, seconds, "127.0.0.1")
    return {each["url"] for each in found}


async def until_found(wanted: set[str], *, gone: frozenset[str] = frozenset()) -> bool:
    end = time.monotonic() + PATIENCE_S / 3
    while not (wanted <= (found := await urls()) and not gone & found):
        if time.monotonic() > end:
            return False
    return True


async def test_box_is_found_follows_changes_and_says_goodbye(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mdns.socket, "gethostname", lambda: f"box{os.getpid()}")
    ports = [20_000 + os.getpid() % 20_000, 40_000 + os.getpid() % 20_000]
    plain = Service(ports[0], ("127.0.0.1",))
    tls = Service(ports[1], ("127.0.0.1",), is_tls=True)
    http, https = f"http://127.0.0.1:{ports[0]}/v1", f"https://127.0.0.1:{ports[1]}/v1"
    wanted = [plain]
    async with present(wanted, avahi=tmp_path / "none") as presence:
        if not await until_found({http}):
            pytest.skip("multicast does not reach others on this loopback")
        wanted[:] = [tls]
        presence.look()
        assert await until_found({https}, gone=frozenset({http}))
    assert await until_found(set(), gone=frozenset({http, https}))


async def test_avahi_speaks_for_the_box_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mdns.socket, "gethostname", lambda: f"silent{os.getpid()}")
    asked = asyncio.Event()

    def wanted() -> tuple[Service, ...]:
        asked.set()
        return (Service(8000, ("127.0.0.1",)),)

    presence = Presence(wanted, avahi=tmp_path)
    task = asyncio.create_task(presence.run())
    try:
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        await urls()
        assert presence._net is None
    finally:
        task.cancel()
        await asyncio.wait([task])
