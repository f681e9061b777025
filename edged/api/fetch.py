"""Fetch an image from a host that models.toml allows: https only, and never from this network.

A URL in a request must not become a way into the box's own network. So the name is looked up
here, every address of it must be a public one, and the connection goes to the address that was
checked, not to a second look-up. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from urllib.parse import urlsplit

import httpx

_LIMIT_S = 20.0  # of one fetch
_OK = 200
_PORT = 443
# Where IPv6 has public addresses, and what in there only wraps an IPv4 address.
_PUBLIC_V6 = ipaddress.ip_network("2000::/3")
_WRAPPED_V4 = (ipaddress.ip_network("2002::/16"), ipaddress.ip_network("2001::/32"))


class NotFetched(ValueError):
    """The message is a predicate about the URL."""


async def get(url: str, *, hosts: tuple[str, ...], most_bytes: int) -> bytes:
    """Return what the URL holds; raises NotFetched."""
    host, target = _checked(url, hosts)
    try:
        async with asyncio.timeout(_LIMIT_S):
            address = await _public_address(host)
            return await _download(host, address, target, most_bytes)
    except TimeoutError:
        raise NotFetched(f"could not be fetched from {host} in {_LIMIT_S:.0f} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        reason = str(error)[:200] or type(error).__name__
        raise NotFetched(f"could not be fetched from {host}: {reason}") from None


def _checked(url: str, hosts: tuple[str, ...]) -> tuple[str, str]:
    """Return host and path of a URL that may be fetched."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise NotFetched("is not a valid URL") from None
    if not hosts:
        raise NotFetched(
            "must be a `data:` URL: this box fetches nothing; `server.media_hosts` in models.toml "
            "names hosts from which it may"
        )
    if host not in hosts:
        raise NotFetched(
            f"is on {host[:100] or 'no host'}, which `server.media_hosts` in models.toml does not "
            "name; send the image as a `data:` URL"
        )
    if parts.username is not None or port not in (None, _PORT):
        raise NotFetched(f"must have no user, no password and no port but {_PORT}")
    return host, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


async def _public_address(host: str) -> str:
    addresses = await _look_up(host)
    inside = next((address for address in addresses if not is_public(address)), None)
    if inside is not None:  # also one among public ones: the name is then not what it seems
        raise NotFetched(f"is on {host}, which has the address {inside}: that is not a public one")
    return addresses[0]


async def _look_up(host: str) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, _PORT, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


def is_public(address: str) -> bool:
    """Tell whether an IP address belongs to the internet and to no network at home."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and (
        found not in _PUBLIC_V6 or any(found in network for network in _WRAPPED_V4)
    ):
        return False
    return found.is_global and not found.is_multicast


async def _download(host: str, address: str, target: str, most_bytes: int) -> bytes:
    shown = f"[{address}]" if ":" in address else address
    # The certificate is checked against the name although the connection goes to the address, and
    # with the box's own authorities.
    tls = ssl.create_default_context()
    async with (
        httpx.AsyncClient(verify=tls, trust_env=False, timeout=_LIMIT_S) as client,
        client.stream(
            "GET",
            f"https://{shown}:{_PORT}{target}",
            headers={"host": host, "accept": "image/*", "accept-encoding": "identity"},
            extensions={"sni_hostname": host},
        ) as response,
    ):
        if response.is_redirect:
            raise NotFetched(f"is answered by {host} with a redirect, which is not followed")
        if response.status_code != _OK:
            raise NotFetched(f"is answered by {host} with status {response.status_code}")
        pieces: list[bytes] = []
        n_bytes = 0
        async for piece in response.aiter_raw():
            n_bytes += len(piece)
            if n_bytes > most_bytes:
                raise NotFetched(f"holds more than the {most_bytes:,} bytes that are fetched")
            pieces.append(piece)
        return b"".join(pieces)
