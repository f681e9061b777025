"""How much a key may ask for, and how wrong keys are slowed down. Pure: clocks come from outside.

A minute's allowance flows in evenly: a key with 60 requests a minute may send 60 at once after a
quiet minute, and then one a second.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable

from edged.auth import Key
from edged.errors import RateLimited

Clock = Callable[[], float]
_MINUTE_S = 60.0


class Bucket:
    """An allowance of `size` a minute that fills up evenly; it may be overdrawn."""

    def __init__(self, size: int, now: float) -> None:
        self.size = size
        self._level = float(size)
        self._at = now

    def level(self, now: float) -> float:
        """Return what is left; below zero: what was taken too much."""
        self._level = min(self.size, self._level + (now - self._at) * self.size / _MINUTE_S)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take this much, whether it is there or not."""
        self._level = self.level(now) - amount

    def resize(self, size: int, now: float) -> None:
        """Change the allowance of a minute; what was taken stays taken."""
        if size != self.size:
            taken = self.size - self.level(now)
            self.size, self._level = size, size - taken

    def wait_s(self, amount: float, now: float) -> float:
        """Return how long until this much is there, in s."""
        missing = amount - self.level(now)
        return max(0.0, missing * _MINUTE_S / self.size)


class _Account:
    """What one key has used. `open` counts its requests that run."""

    def __init__(self) -> None:
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.open = 0


class Limiter:
    """The accounts of all keys, by name. They outlive reloads, not the daemon."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def enter(self, key: Key) -> None:
        """Begin a request of this key; raises RateLimited, and then nothing was taken."""
        account, now = self._account(key), self._clock()
        if key.parallel is not None and account.open >= key.parallel:
            raise RateLimited(
                f"the key `{key.name}` may run {key.parallel} requests at the same time, and "
                "that many run; try again when one has ended",
                retry_after_s=1,
            )
        for bucket, needed, what in (
            (account.requests, 1, "requests"),
            # What a request costs is known when it ends; then the bucket may be overdrawn.
            (account.tokens, 1, "tokens"),
        ):
            if bucket is not None and (wait := bucket.wait_s(needed, now)) > 0:
                seconds = math.ceil(wait)
                raise RateLimited(
                    f"the key `{key.name}` may use {bucket.size:,} {what} a minute, and has; "
                    f"try again in {seconds} s",
                    retry_after_s=seconds,
                )
        if account.requests is not None:
            account.requests.take(1, now)
        account.open += 1

    def leave(self, key: Key) -> None:
        """End a request that has entered."""
        account = self._accounts[key.name]
        account.open -= 1

    def charge(self, key: Key, tokens: int) -> None:
        """Count the tokens that a request has cost."""
        bucket = self._account(key).tokens
        if bucket is not None and tokens:
            bucket.take(tokens, self._clock())

    def headers(self, key: Key) -> list[tuple[str, str]]:
        """Return OpenAI's rate-limit headers for this key; none for a key without limits."""
        account, now = self._account(key), self._clock()
        found = []
        for what, bucket in (("requests", account.requests), ("tokens", account.tokens)):
            if bucket is not None:
                found += [
                    (f"x-ratelimit-limit-{what}", str(bucket.size)),
                    (f"x-ratelimit-remaining-{what}", str(max(0, int(bucket.level(now))))),
                    (f"x-ratelimit-reset-{what}", _duration(bucket.wait_s(bucket.size, now))),
                ]
        return found

    def forget(self, names: Iterable[str]) -> None:
        """Drop the accounts of keys that are not among `names` any more and have nothing open."""
        kept = set(names)
        self._accounts = {
            name: account
            for name, account in self._accounts.items()
            if name in kept or account.open
        }

    def _account(self, key: Key) -> _Account:
        account = self._accounts.setdefault(key.name, _Account())
        now = self._clock()
        account.requests = _sized(account.requests, key.rpm, now)
        account.tokens = _sized(account.tokens, key.tpm, now)
        return account


def _sized(bucket: Bucket | None, size: int | None, now: float) -> Bucket | None:
    if size is None:
        return None
    if bucket is None:
        return Bucket(size, now)
    bucket.resize(size, now)
    return bucket


def _duration(seconds: float) -> str:
    """Return `1.5s` or `2m3s`, as OpenAI writes them."""
    if seconds < _MINUTE_S:
        return f"{math.ceil(seconds * 1000) / 1000:g}s"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s"


class Guard:
    """Slows down who sends wrong keys, by address; a right key is never held up by others' guesses.

    Guessing 256 bits is hopeless at any speed: this keeps the noise down and makes it visible.
    """

    FIRST_S = 0.2  # doubled with every further wrong key …
    MOST_S = 5.0  # … up to this
    FORGET_S = 600.0  # since the last wrong key
    MOST_WAITING = 8  # of one address at once; more are refused without a wait
    MOST_ADDRESSES = 4096

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: OrderedDict[str, tuple[int, float]] = OrderedDict()  # wrong keys, the last
        self._waiting: dict[str, int] = {}

    def wrong(self, address: str) -> float | None:
        """Note a wrong key; return how long its answer waits, in s, None: refuse at once.

        After a wait `done` must be called.
        """
        source, now = _source(address), self._clock()
        count, last = self._seen.pop(source, (0, now))
        count = 0 if now - last > self.FORGET_S else count
        self._seen[source] = (count + 1, now)
        while len(self._seen) > self.MOST_ADDRESSES:
            self._seen.popitem(last=False)
        if self._waiting.get(source, 0) >= self.MOST_WAITING:
            return None
        self._waiting[source] = self._waiting.get(source, 0) + 1
        return float(min(self.MOST_S, self.FIRST_S * 2 ** min(count, 16)))

    def done(self, address: str) -> None:
        """End a wait."""
        source = _source(address)
        self._waiting[source] -= 1
        if not self._waiting[source]:
            del self._waiting[source]


def _source(address: str) -> str:
    """Return what one visitor has for sure: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address  # a unix socket
    if isinstance(found, ipaddress.IPv6Address):
        return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))
    return str(found)
