"""Who may come in: networks, keys and their limits, and what browsers may be led to do.

A browser carries its user's network position to pages of strangers. Where no key is shown, a page
must not get in by its own name for this box's address (DNS rebinding: `Host`) nor from another
site (`Origin`). Where a key is shown there is nothing to guess: strangers' pages have none.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from edged import errors
from edged.api.exchange import Exchange
from edged.auth import Key, Keyring, show_time
from edged.config import Server
from edged.limits import Guard, Limiter
from edged.log import get_logger
from edged.metrics import Metrics

_KEYLESS = frozenset({"/health", "/ready", "/ca.crt"})
_COSTLESS = frozenset({"GET", "HEAD", "OPTIONS"})
# Names that nobody can register on the internet (RFC 6762, 6761, 8375 and what routers use).
_OWN_SUFFIXES = (".local", ".localhost", ".internal", ".home.arpa", ".lan", ".localdomain")
_CORS_HEADERS = "authorization, content-type, x-api-key, api-key, anthropic-version, x-request-id"
_CORS_AGE_S = 600


class Access:
    """The keys in force and what they have used. The daemon's reload writes `keyring`."""

    def __init__(
        self,
        keyring: Keyring = Keyring(),  # noqa: B008 - frozen
        *,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.keyring = keyring
        self.limiter = Limiter(clock)
        self.guard = Guard(clock)
        self.metrics = metrics
        self.wall = wall

    def replace(self, keyring: Keyring) -> bool:
        """Bring other keys into force, at once; return whether they differ."""
        differs = keyring != self.keyring
        self.keyring = keyring
        self.limiter.forget(key.name for key in keyring.keys)
        return differs

    def charge(self, exchange: Exchange, tokens: int) -> None:
        """Count the tokens of a request on its key's account."""
        if exchange.key is not None:
            self.limiter.charge(exchange.key, tokens)
            self.metrics.key_tokens(exchange.key.name, tokens)


class Visit:
    """One request at the door: `admit` before it is served, `leave` when it has ended."""

    def __init__(
        self, access: Access, server: Server, scope: Mapping[str, Any], exchange: Exchange
    ) -> None:
        self._access = access
        self._server = server
        self._scope = scope
        self._exchange = exchange
        self._entered = False
        self._head: dict[str, bytes] = {
            name.decode("latin-1"): value for name, value in scope["headers"]
        }

    async def admit(self) -> None:
        """Let it in, or raise the EdgedError that says why not."""
        client, server = self._exchange.client, self._server
        if self._exchange.admin:
            return  # the admin socket: the rights of its file have decided
        if not in_networks(client, server.allow):
            raise errors.NetworkNotAllowed(f"{client} is in none of the networks of `server.allow`")
        if self._is_preflight():
            return  # browsers send it without a key; the answer's headers say who may come
        key = await self._key()
        if key is None:
            if not self._is_for_all():  # nothing is told there that a page could use
                self._check_host()
                self._check_origin()
            return
        self._exchange.key = key
        self._exchange.owner = key.name
        self._exchange.admin = key.admin
        if self._scope["method"] not in _COSTLESS:
            self._access.limiter.enter(key)
            self._entered = True

    def leave(self) -> None:
        """End what `admit` began, also when it raised."""
        exchange = self._exchange
        if exchange.key is not None:
            if self._entered:
                self._access.limiter.leave(exchange.key)
            self._access.metrics.key_request(exchange.key.name, exchange.status)

    @property
    def answers_preflight(self) -> bool:
        """Whether a browser asks beforehand, for a site that may come."""
        return self._is_preflight() and self._origin_is_allowed()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return what every answer to this request carries."""
        found: list[tuple[str, str]] = []
        if self._exchange.key is not None:
            found += self._access.limiter.headers(self._exchange.key)
        if self._origin_is_allowed():
            origin = self._head["origin"].decode("latin-1")
            found += [("access-control-allow-origin", origin), ("vary", "origin")]
            if self._is_preflight():
                found += [
                    ("access-control-allow-methods", "GET, POST, DELETE"),
                    ("access-control-allow-headers", self._asked_headers()),
                    ("access-control-max-age", str(_CORS_AGE_S)),
                ]
            else:
                found.append(("access-control-expose-headers", "x-request-id, retry-after"))
        return [(name.encode(), value.encode("latin-1")) for name, value in found]

    # ── keys ──

    async def _key(self) -> Key | None:
        """Return the key that was shown, None where none is needed; raises InvalidApiKey."""
        secret = self._secret()
        key = self._access.keyring.find(secret, self._access.wall()) if secret else None
        needed = self._needs_key()
        if key is not None and (refusal := self._refusal(key)) is not None:
            if needed:
                raise refusal
            return None
        if key is not None or not needed:
            return key  # a client without need often sends some placeholder
        if not secret:
            raise errors.InvalidApiKey(
                "this box wants an API key: send it as `Authorization: Bearer KEY`; "
                "who runs the box makes one with `edged key add NAME`"
            )
        await self._slow_down()
        raise errors.InvalidApiKey("this box does not know this API key")

    def _needs_key(self) -> bool:
        if self._server.auth == "none" or self._is_for_all():
            return False
        return self._server.auth == "keys" or not _is_here(self._exchange.client)

    def _is_for_all(self) -> bool:
        return self._scope["path"].rstrip("/") in _KEYLESS

    def _secret(self) -> str:
        scheme, _, token = self._head.get("authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
        other = self._head.get("x-api-key") or self._head.get("api-key") or b""
        return other.decode("latin-1").strip()

    def _refusal(self, key: Key) -> errors.EdgedError | None:
        if key.expires is not None and self._access.wall() >= key.expires:
            self._access.metrics.wrong_key("expired")
            return errors.InvalidApiKey(
                f"the key `{key.name}` expired on {show_time(key.expires)}; "
                f"who runs the box makes a new one with `edged key rotate {key.name} --expires 90d`"
            )
        client = self._exchange.client
        if key.networks is not None and not in_networks(client, key.networks):
            return errors.NetworkNotAllowed(
                f"the key `{key.name}` is not for {client}; it is for {', '.join(key.networks)}"
            )
        return None

    async def _slow_down(self) -> None:
        guard, client = self._access.guard, self._exchange.client
        self._access.metrics.wrong_key("unknown")
        wait_s = guard.wrong(client)
        get_logger().warning("key.wrong", client=client, wait_s=wait_s)
        if wait_s is None:
            raise errors.RateLimited(
                "too many wrong API keys come from this address",
                retry_after_s=round(guard.MOST_S),
            )
        try:
            await asyncio.sleep(wait_s)
        finally:
            guard.done(client)

    # ── browsers ──

    def _check_host(self) -> None:
        given = self._head.get("host", b"").decode("latin-1")
        name = _hostname(given)
        if given and not is_own_name(name, self._server.hosts):
            raise errors.HostNotAllowed(
                f"this box does not answer under the name {name[:100]!r} without an API key; "
                "ask by its address, or add the name to `server.hosts` in models.toml"
            )

    def _check_origin(self) -> None:
        if "origin" not in self._head or self._origin_is_allowed():
            return
        origin = self._head["origin"].decode("latin-1")
        host = self._head.get("host", b"").decode("latin-1")
        if origin.partition("://")[2].lower() != host.lower():
            raise errors.OriginNotAllowed(
                f"pages of {origin[:100]!r} may not ask this box without an API key; "
                "add the origin to `server.cors` in models.toml if they should"
            )

    def _origin_is_allowed(self) -> bool:
        origin = self._head.get("origin", b"").decode("latin-1").lower()
        return bool(origin) and (origin in self._server.cors or "*" in self._server.cors)

    def _is_preflight(self) -> bool:
        return (
            self._scope["method"] == "OPTIONS"
            and "origin" in self._head
            and "access-control-request-method" in self._head
        )

    def _asked_headers(self) -> str:
        # The SDKs' x-stainless-… change with their versions: what is asked for is granted.
        return self._head.get("access-control-request-headers", _CORS_HEADERS.encode()).decode(
            "latin-1"
        )


def check_model(exchange: Exchange, model: str, asked: str) -> None:
    """Raise ModelNotAllowed unless the request's key may use `model`, asked for as `asked`."""
    key = exchange.key
    if key is not None and not key.may_use(model, asked):
        raise errors.ModelNotAllowed(
            f"the key `{key.name}` is not for the model {asked[:100]!r}; "
            f"it is for {', '.join(key.models or ()) or 'none'}",
            param="model",
        )


@functools.lru_cache(1024)
def in_networks(client: str, networks: tuple[str, ...]) -> bool:
    """Return whether the address is in one of the networks; a unix socket has its own rights."""
    if client == "unix":
        return True
    address = _address(client)
    return any(address in ipaddress.ip_network(network) for network in networks)


def _is_here(client: str) -> bool:
    return client == "unix" or _address(client).is_loopback


def _address(client: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(client.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _hostname(host: str) -> str:
    """Return a `Host` header less its port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def is_own_name(name: str, hosts: tuple[str, ...]) -> bool:
    """Return whether only this network's own people can have given this box the name."""
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return "." not in name or name.endswith(_OWN_SUFFIXES) or name in (*hosts, _own_name())
    return True


@functools.cache
def _own_name() -> str:
    return socket.gethostname().lower()
