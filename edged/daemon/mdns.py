"""Lets other boxes find this one: its API, announced by mDNS as `edged discover` looks for it.

Announced is only what a box of the allowed networks can reach and needs a key for. Where avahi
runs, it speaks for the box, by the service file that the package has as an example. zeroconf is
imported when something is to be announced: a daemon on loopback does not pay its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ipaddress
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from msgspec import Struct

import edged
from edged.api.access import in_networks
from edged.config import Listen, Server
from edged.log import get_logger

_AVAHI = Path("/run/avahi-daemon/socket")
_LOOK_S = 10.0  # at the addresses of this box, which come and go
_LIMIT_S = 10.0

log = get_logger()


class Service(Struct, frozen=True):
    """What is announced: a port, and the addresses under which others reach it."""

    port: int
    addresses: tuple[str, ...]
    is_tls: bool = False


def services(
    server: Server, listening: Iterable[Listen], own: Iterable[str]
) -> tuple[Service, ...]:
    """Return what is to be announced. `own`: the addresses of this box's interfaces."""
    if not server.announce or server.auth == "none":
        return ()
    # An address outside of the allowed networks has no client that may come in.
    here = [each for each in own if not _is_loopback(each) and in_networks(each, server.allow)]
    found: dict[tuple[int, bool], list[str]] = {}
    for listen in listening:
        if listen.kind == "tcp" and not listen.loopback:
            reached = found.setdefault((listen.port, listen.tls), [])
            reached += [each for each in here if _reaches(listen.host, each)]
    return tuple(
        Service(port, tuple(dict.fromkeys(reached)), is_tls)
        for (port, is_tls), reached in sorted(found.items())
        if reached
    )


def _reaches(host: str, own: str) -> bool:
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - it is compared
        return (":" in host) == (":" in own)
    return host == own


def _is_loopback(text: str) -> bool:
    return ipaddress.ip_address(text).is_loopback


class Presence:
    """What the network is told now; it follows `wanted`. Used in the loop."""

    def __init__(self, wanted: Callable[[], tuple[Service, ...]], *, avahi: Path = _AVAHI) -> None:
        """`wanted` may raise OSError where the interfaces cannot be listed."""
        self._wanted = wanted
        self._avahi = avahi
        self._net: Any = None  # AsyncZeroconf while something is announced
        self._problem = ""
        self._look = asyncio.Event()

    def look(self) -> None:
        """Look at once whether something else is to be announced."""
        self._look.set()

    async def run(self) -> None:
        """Keep the network informed, and take it back in the end. Never ends by itself."""
        said: tuple[Service, ...] = ()
        try:
            while True:
                self._look.clear()
                wanted: tuple[Service, ...] = ()
                with contextlib.suppress(OSError):
                    wanted = self._wanted()
                if wanted and self._avahi.exists():
                    wanted = ()
                if wanted != said:
                    await self._withdraw()
                    said = wanted if await self._announce(wanted) else ()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._look.wait(), _LOOK_S)
        finally:
            await self._withdraw()

    async def _announce(self, wanted: tuple[Service, ...]) -> bool:
        """Say it and return whether the network took it; what is wrong with it is logged once."""
        if not wanted:
            return True
        library = await asyncio.to_thread(importlib.import_module, "zeroconf.asyncio")
        addresses = [address for each in wanted for address in each.addresses]
        v4 = sorted({each for each in addresses if ":" not in each})
        try:
            self._net = library.AsyncZeroconf(interfaces=v4 or sorted(set(addresses)))
            for service in wanted:
                await asyncio.wait_for(self._register(library, service), _LIMIT_S)
        except Exception as error:  # noqa: BLE001 - whatever a network may do, the API goes on
            await self._withdraw()
            problem = str(error) or type(error).__name__
            if problem != self._problem:
                log.warning("mdns.failed", reason=problem, meaning="this box is not announced")
            self._problem = problem
            return False
        self._problem = ""
        log.info("mdns.announced", addresses=sorted(set(addresses)))
        return True

    async def _register(self, library: Any, service: Service) -> None:
        kind = f"_{'https' if service.is_tls else 'http'}._tcp.local."
        host = socket.gethostname().partition(".")[0] or "box"
        about = {
            "port": service.port,
            "parsed_addresses": list(service.addresses),
            "server": f"{host}.local.",
            "properties": {
                "txtvers": "1",
                "path": "/v1",
                "api": "openai",
                "auth": "bearer",
                "version": edged.__version__,
            },
        }
        name = f"edged on {host[:40]}.{kind}"
        proper = library.AsyncServiceInfo(kind, name, **about)
        # Two boxes of one name become "edged on box" and "edged on box-2".
        await (await self._net.async_register_service(proper, allow_name_change=True))
        # RFC 6763, 7.1: the subtype points to the same instance. The library keeps one entry for
        # each key, and answers with the name.
        subtype = library.AsyncServiceInfo(f"_openai._sub.{kind}", proper.name, **about)
        subtype.key = f"openai {proper.key}"
        await (await self._net.async_register_service(subtype, cooperating_responders=True))

    async def _withdraw(self) -> None:
        net, self._net = self._net, None
        if net is not None:
            with contextlib.suppress(Exception):  # the network has gone
                await asyncio.wait_for(net.async_unregister_all_services(), _LIMIT_S)
            await net.async_close()
