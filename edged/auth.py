"""API keys: the file that holds them, which key a secret is, and where keys are a must.

`keys.toml` lies beside `models.toml` and holds a SHA-256 of each secret, never the secret. A secret
has 256 random bits, so there is nothing for a slow hash to protect.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
import secrets
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from edged.config import Listen, Server
from edged.config.values import BadValueError, boolean, many, network, suggestion, text, whole
from edged.errors import ConfigError

FILE = "keys.toml"
FIRST = "first-key"  # beside it: the secret that the installation made, until somebody looked

_PREFIX = "sk-edged-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST = 1 << 40
_HEAD = """\
# The keys of this box, written by `edged key`; comments of your own are not kept.
# A key is shown once, when it is made: here are only SHA-256 sums. Changes apply by themselves.
"""


class Key(Struct, frozen=True, kw_only=True):
    """One key. `name` is its label in logs and metrics. Times are s since 1970, in UTC.

    None means: no limit (`models`: all of them; `networks`: those of `server.allow`).
    """

    name: str
    sha256: str
    created: float = 0.0
    admin: bool = False
    models: tuple[str, ...] | None = None
    rpm: int | None = None  # requests a minute
    tpm: int | None = None  # tokens a minute, of prompts and answers together
    parallel: int | None = None  # requests at the same time
    networks: tuple[str, ...] | None = None
    expires: float | None = None
    old_sha256: str | None = None  # the secret before `rotate`, good until `old_until`
    old_until: float | None = None

    def may_use(self, model: str, asked: str) -> bool:
        """Return whether it may use the configured `model` that was asked for as `asked`."""
        return self.models is None or model in self.models or asked in self.models


class Keyring(Struct, frozen=True):
    """All keys of a file, in its order."""

    keys: tuple[Key, ...] = ()

    def find(self, secret: str, now: float) -> Key | None:
        """Return the key of this secret, expired ones too; takes as long for a wrong one."""
        wanted = digest(secret)
        found: Key | None = None
        for key in self.keys:  # no way out before the last: the time tells nothing
            is_it = hmac.compare_digest(wanted, key.sha256)
            was_it = hmac.compare_digest(wanted, key.old_sha256 or "")
            if is_it or (was_it and now < (key.old_until or 0)):
                found = key
        return found

    def named(self, name: str) -> Key | None:
        """Return the key with this name."""
        return next((key for key in self.keys if key.name == name), None)

    def with_key(self, new: Key) -> Keyring:
        """Return these keys with `new`, in the place of the one that has its name."""
        if self.named(new.name) is None:
            return Keyring((*self.keys, new))
        return Keyring(tuple(new if key.name == new.name else key for key in self.keys))

    def without(self, name: str) -> Keyring:
        """Return these keys less the one with this name."""
        return Keyring(tuple(key for key in self.keys if key.name != name))


def new_secret() -> str:
    """Return a secret that nobody has."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def check_name(name: str) -> str:
    """Return the name of a key; raises ConfigError if it cannot be one."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:80]!r} cannot be the name of a key: letters, digits, dot, dash and "
            "underscore, 64 at most"
        )
    return name


def check_reach(server: Server, keyring: Keyring, path: Path, held: Iterable[Listen] = ()) -> None:
    """Raise ConfigError where other boxes could come in and would need keys, and there are none.

    `held` are the addresses of sockets that systemd has opened for the daemon.
    """
    if server.auth == "none" or keyring.keys:
        return
    if (beyond := next((each for each in held if not each.loopback), None)) is not None:
        raise ConfigError(
            f"{path}: there are no API keys, and systemd holds {beyond} for edged, which is beyond "
            "loopback: make one with `sudo edged key add NAME`, then `sudo systemctl restart "
            "edged.socket edged`; or let the socket listen on 127.0.0.1 alone (`sudo systemctl "
            "edit edged.socket`: an empty ListenStream=, then ListenStream=127.0.0.1:8000); or say "
            'auth = "none" in [server] if everybody in `allow` may use this box'
        )
    if (beyond := next((each for each in server.addresses if not each.loopback), None)) is not None:
        raise ConfigError(
            f"{path.with_name('models.toml')}: {beyond} is beyond loopback, which needs API keys, "
            f"and {path} has none: "
            "make one with `edged key add NAME`, or listen on 127.0.0.1, or say "
            'auth = "none" in [server] if everybody in `allow` may use this box'
        )


# ── the file ──


def path_beside(config: Path) -> Path:
    """Return where the keys of this `models.toml` are."""
    return config.with_name(FILE)


def load(path: Path) -> Keyring:
    """Read the file; none means no keys. Raises ConfigError with everything that is wrong."""
    try:
        content = path.read_text()
    except FileNotFoundError:
        return Keyring()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8"
        raise ConfigError(
            f"{path}: cannot be read: {reason}; it wants the owner root, the daemon's group and "
            "mode 0640"
        ) from None
    return parse(content, path)


def parse(content: str, path: Path) -> Keyring:
    """Read the text of the file `path`; raises ConfigError with everything that is wrong."""
    try:
        top = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    problems: list[str] = []
    keyring = Keyring(tuple(_keys(top, problems)))
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return keyring


def unseen(path: Path) -> str | None:
    """Return the first key beside this `keys.toml` while nobody has looked and it is good.

    A rotation or a restored backup may have made it good for nothing. Raises PermissionError where
    it is not ours to see, and ConfigError.
    """
    try:
        secret = path.with_name(FIRST).read_text().strip()
    except FileNotFoundError:
        return None
    return secret if load(path).find(secret, time.time()) else None


def _keys(top: dict[str, Any], problems: list[str]) -> Iterable[Key]:
    problems += [f"{key} is not a known table; write [keys.NAME]" for key in top if key != "keys"]
    tables = top.get("keys", {})
    if not isinstance(tables, dict):
        problems.append("keys must be tables: write [keys.NAME] for each key")
        return
    for name, table in tables.items():
        at = f"keys.{name}"
        if not _NAME.fullmatch(name) or not isinstance(table, dict):
            problems.append(f"{at} must be a table whose name has letters, digits and . _ - only")
            continue
        fields: dict[str, Any] = {}
        for field, value in table.items():
            if field not in _READERS:
                problems.append(f"{at}.{field} is not a known key{suggestion(field, _READERS)}")
                continue
            try:
                fields[field] = _READERS[field](value)
            except BadValueError as error:
                problems.append(f"{at}.{field} {error}")
        if "sha256" not in table:
            problems.append(f"{at} has no sha256; `edged key add` makes whole keys")
        elif "sha256" in fields:
            yield Key(name=name, **fields)


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise BadValueError("must be the SHA-256 of the secret, 64 hexadecimal digits")
    return value


def _time(value: Any) -> float:
    if isinstance(value, dt.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=dt.UTC)).timestamp()
    if isinstance(value, dt.date):
        midnight = dt.time(tzinfo=dt.UTC)
        return dt.datetime.combine(value, midnight).timestamp()
    raise BadValueError("must be a time such as 2027-01-31T00:00:00Z")


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "sha256": _sha256,
    "created": _time,
    "admin": boolean,
    "models": many(text, "model names"),
    "rpm": whole(1, _MOST),
    "tpm": whole(1, _MOST),
    "parallel": whole(1, _MOST),
    "networks": many(network, "networks", at_least=1),
    "expires": _time,
    "old_sha256": _sha256,
    "old_until": _time,
}


def dump(keyring: Keyring) -> str:
    """Return the text of the file."""
    parts = [_HEAD]
    for key in keyring.keys:
        lines = [f'\n[keys."{key.name}"]']
        lines += [
            f"{field} = {_toml(field, value)}"
            for field in _READERS
            if (value := getattr(key, field)) is not None and value is not False
        ]
        parts.append("\n".join(lines) + "\n")
    return "".join(parts)


def _toml(field: str, value: Any) -> str:
    if _READERS[field] is _time:
        return show_time(value)
    if isinstance(value, bool):
        return "true"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_quoted(each) for each in value)}]"
    return _quoted(value)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def show_time(seconds: float) -> str:
    """Return `2027-01-31T00:00:00Z`."""
    when = dt.datetime.fromtimestamp(int(seconds), dt.UTC)
    return when.isoformat().replace("+00:00", "Z")
