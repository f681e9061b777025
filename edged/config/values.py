"""One value of `models.toml` → what the Structs hold.

Each reader takes what `tomllib` gave and returns the value, or raises BadValueError with a
predicate that follows the key's name: `context` + " must be a whole number …".
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from msgspec import Struct

from edged.redaction import without_secrets

Reader = Callable[[Any], Any]


class BadValueError(ValueError):
    """The value cannot be taken; the message is the predicate of a sentence about its key."""


class Secret(Struct, frozen=True):
    """Where a secret is kept: `env:NAME` or `file:/PATH`; never the secret itself."""

    kind: Literal["env", "file"]
    where: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.where}"


class Listen(Struct, frozen=True):
    """One address of the API: TCP (an IP address; port 0 = any free one) or a Unix socket."""

    kind: Literal["tcp", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """True when only this box can reach it."""
        return self.kind == "unix" or ipaddress.ip_address(self.host).is_loopback


# ── plain values ──


def boolean(value: Any) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise BadValueError(_must_be("true or false", value))
    return value


def text(value: Any) -> str:
    """Read any string that is not empty and has no control characters or outer blanks."""
    if not isinstance(value, str):
        raise BadValueError(_must_be("a string", value))
    if not value or not value.isprintable() or value != value.strip():
        raise BadValueError(_must_be("printable text without blanks around it", value))
    return value


def whole(low: int, high: int) -> Reader:
    """Return a reader of a whole number from low to high."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise BadValueError(_must_be(f"a whole number from {low} to {high}", value))
        return value

    return read


def number(low: float, high: float) -> Reader:
    """Return a reader of a number from low to high."""

    def read(value: Any) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise BadValueError(_must_be(f"a number from {low:g} to {high:g}", value))
        return float(value)

    return read


def choice(literal: Any) -> Reader:
    """Return a reader of one of the values of a Literal."""
    options = get_args(literal)

    def read(value: Any) -> Any:
        if isinstance(value, bool) or value not in options:
            wanted = " or ".join(show(option) for option in options)
            raise BadValueError(_must_be(wanted, value) + suggestion(value, options))
        return options[options.index(value)]  # 4.0 → 4

    return read


def many(item: Reader, what: str, *, at_least: int = 0) -> Reader:
    """Return a reader of a list without repetitions; it becomes a tuple."""

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) < at_least:
            raise BadValueError(_must_be(f"a list of {what}", value))
        items = []
        for position, element in enumerate(value, 1):
            try:
                items.append(item(element))
            except BadValueError as error:
                raise BadValueError(f"item {position} {error}") from None
        twice = next((element for element in items if items.count(element) > 1), None)
        if twice is not None:
            raise BadValueError(f"has {show(str(twice))} twice")
        return tuple(items)

    return read


# ── quantities ──

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(B|KiB|MiB|GiB|TiB)")
_DECIMAL_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kKMGT])B?")
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


_DURATION_FORM = 'a duration such as "90s", "15m" or "2h", one second at least'


def duration_or_never(value: Any) -> float | None:
    """Read a duration, or `never` → None."""
    seconds = _seconds(value)
    if seconds is None and value != "never":
        raise BadValueError(_must_be(f'{_DURATION_FORM}, or "never"', value))
    return seconds


def duration_or_zero(value: Any) -> float:
    """Read a duration, or `0` → 0."""
    seconds = 0.0 if value == "0" else _seconds(value)
    if seconds is None:
        raise BadValueError(_must_be(f'{_DURATION_FORM}, or "0"', value))
    return seconds


def size_or_zero(low: int, high: int) -> Reader:
    """Return a reader of a size from low to high, or `0` → 0."""
    read = size(low, high)
    return lambda value: 0 if value == "0" else read(value)


def _seconds(value: Any) -> float | None:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0
    return seconds if seconds >= 1 else None


def size(low: int, high: int) -> Reader:
    """Return a reader of `512MiB`, `2GiB` → bytes, from low to high."""

    def read(value: Any) -> int:
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if not match:
            message = _must_be('a size such as "512MiB" or "2GiB"', value)
            decimal = _DECIMAL_SIZE.fullmatch(value) if isinstance(value, str) else None
            if decimal:
                message += f'; did you mean "{decimal[1]}{decimal[2].upper()}iB"?'
            raise BadValueError(message)
        found = int(float(match[1]) * _BYTES[match[2]])
        if not low <= found <= high:
            raise BadValueError(
                _must_be(f"from {format_bytes(low)} to {format_bytes(high)}", value)
            )
        return found

    return read


def format_bytes(n_bytes: float) -> str:
    """Return `6.1 GiB`, `512 MiB`: what a person reads."""
    unit = max(
        (unit for unit in _BYTES if n_bytes >= _BYTES[unit]), key=_BYTES.__getitem__, default="B"
    )
    return f"{n_bytes / _BYTES[unit]:.1f} {unit}".replace(".0 ", " ")


# ── addresses ──

_TCP = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<v4>[^:\[\]]*)):(?P<port>\d{1,5})")
_MAX_PORT = 65535
_MAX_SOCKET_PATH_BYTES = 107  # sun_path, less its closing NUL


def listen(value: Any) -> Listen:
    """Read `127.0.0.1:8000`, `[::]:8000`, `localhost:8000`, `unix:/run/edged/api.sock`."""
    wanted = 'an address such as "127.0.0.1:8000", "[::]:8000" or "unix:/run/edged/api.sock"'
    if not isinstance(value, str):
        raise BadValueError(_must_be(wanted, value))
    if value.startswith("unix:"):
        return _unix(value.removeprefix("unix:"))
    match = _TCP.fullmatch(value)
    if not match or int(match["port"]) > _MAX_PORT:
        raise BadValueError(_must_be(wanted, value))
    host, port = match["v6"] or match["v4"], int(match["port"])
    if host in ("", "*"):
        raise BadValueError(_must_be(wanted, value) + f'; for every address write "0.0.0.0:{port}"')
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise BadValueError(
            _must_be(f"{wanted}; names are not looked up, apart from localhost", value)
        ) from None
    if (address.version == 6) != bool(match["v6"]):  # noqa: PLR2004 - IPv6
        raise BadValueError(_must_be(wanted, value))
    return Listen("tcp", host=str(address), port=port)


def _unix(path: str) -> Listen:
    if not path.startswith("/") or "\0" in path or path.endswith("/"):
        raise BadValueError(_must_be('an absolute path after "unix:"', f"unix:{path}"))
    if len(path.encode()) > _MAX_SOCKET_PATH_BYTES:
        raise BadValueError(
            f"is too long: the path of a socket has {_MAX_SOCKET_PATH_BYTES} bytes at most"
        )
    return Listen("unix", path=path)


def network(value: Any) -> str:
    """Read `10.0.0.0/8`, `::1` → the same in canonical form with its prefix length."""
    wanted = 'a network such as "192.168.0.0/16" or an address such as "::1"'
    if not isinstance(value, str):
        raise BadValueError(_must_be(wanted, value))
    try:
        found = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise BadValueError(_must_be(wanted, value)) from None
    if "/" in value and found.network_address != ipaddress.ip_address(value.split("/")[0]):
        raise BadValueError(f'{_must_be(wanted, value)}; did you mean "{found}"?')
    return str(found)


_HOST = re.compile(r"(?=.{1,253}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,62}")


def host(value: Any) -> str:
    """Read the name of a host on the internet → the same in lower case."""
    if not isinstance(value, str) or not _HOST.fullmatch(value.lower()):
        raise BadValueError(_must_be('the name of a host such as "images.example.org"', value))
    return value.lower()


def origin(value: Any) -> str:
    """Read `https://app.example.org`, or `*` → the same in lower case."""
    wanted = 'an origin such as "https://app.example.org" or "http://10.0.0.5:3000", or "*"'
    if value == "*":
        return "*"
    if not isinstance(value, str) or not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", value):
        raise BadValueError(_must_be(wanted, value))
    return value.lower()


def tls_listen(value: Any) -> Listen:
    """Read an address as `listen` does, but no unix socket: one that speaks TLS."""
    found = listen(value)
    if found.kind != "tcp":
        raise BadValueError(_must_be('an address such as "0.0.0.0:8443"', value))
    return Listen("tcp", host=found.host, port=found.port, tls=True)


def absolute(value: Any) -> str:
    """Read the absolute path of a file."""
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        raise BadValueError(_must_be('an absolute path such as "/etc/ssl/box.pem"', value))
    return value


def upstream(value: Any) -> str:
    """Read `http://10.0.0.7:8000/v1` → the same without a trailing slash."""
    wanted = 'the URL of an OpenAI-compatible API such as "http://10.0.0.7:8000/v1"'
    if not isinstance(value, str) or not value.isprintable() or " " in value:
        raise BadValueError(_must_be(wanted, value))
    try:
        url = urlsplit(value)
        good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        good = False
    if not good:
        raise BadValueError(_must_be(wanted, value))
    if url.username is not None or url.query or url.fragment:
        raise BadValueError(_must_be(f"{wanted}, without user, query or fragment", value))
    return value.rstrip("/")


# ── files ──


def secret(value: Any) -> Secret:
    """Read `env:NAME` or `file:/PATH`."""
    wanted = '"env:NAME" or "file:/PATH", the place of a secret and not the secret itself'
    kind, _, where = value.partition(":") if isinstance(value, str) else ("", "", "")
    good = where.startswith("/") if kind == "file" else re.fullmatch(r"[A-Za-z_]\w*", where)
    if kind not in ("env", "file") or not good or not where.isprintable():
        raise BadValueError(f"must be {wanted}")  # what stands there may be the secret
    return Secret(kind, where)  # type: ignore[arg-type]


def folder(value: Any) -> str:
    """Read an absolute path."""
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        raise BadValueError(_must_be('an absolute path such as "/srv/models"', value))
    return value.rstrip("/") or "/"


# ── words ──

_SHOWN_CHARACTERS = 60


def show(value: Any) -> str:
    """Return the value as it may stand in TOML, shortened, less what looks like a secret."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    if isinstance(value, bool | str):
        shown = without_secrets(json.dumps(value, ensure_ascii=False))
    elif isinstance(value, int) and value.bit_length() > _SHOWN_CHARACTERS * 2:
        shown = "a number far too large"  # str() refuses to write the largest
    else:
        shown = str(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[: _SHOWN_CHARACTERS - 1] + "…"


def suggestion(word: Any, known: Iterable[Any]) -> str:
    """Return `; did you mean "…"?` when a known word is near, else nothing."""
    words = [candidate for candidate in known if isinstance(candidate, str)]
    if not isinstance(word, str):
        return ""
    near = difflib.get_close_matches(word[:64].lower(), words, n=1, cutoff=0.5)
    return f'; did you mean "{near[0]}"?' if near else ""


def _must_be(wanted: str, value: Any) -> str:
    return f"must be {wanted}, not {show(value)}"
