"""`edged key`: who may use this box. A running daemon follows keys.toml by itself."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import grp
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from edged import atomic, auth, config
from edged.auth import Key, Keyring
from edged.cli.client import ConfigFile, Json, fail
from edged.config.values import BadValueError, duration_or_zero, network
from edged.errors import ConfigError

keys = typer.Typer(help="API keys: make, list, change, revoke.", no_args_is_help=True)

_GROUP = "edged"  # of the daemon that the package runs
_MODE = 0o640
_LAST = dt.datetime(9999, 12, 31, tzinfo=dt.UTC).timestamp()  # that can be written

Name = Annotated[str, typer.Argument(metavar="NAME", help="Its label in logs and metrics.")]
Models = Annotated[
    str | None, typer.Option("--models", metavar="A,B", help="Only these models; else all.")
]
Rpm = Annotated[int | None, typer.Option("--rpm", min=1, help="Requests a minute.")]
Tpm = Annotated[int | None, typer.Option("--tpm", min=1, help="Tokens a minute.")]
Parallel = Annotated[int | None, typer.Option("--parallel", min=1, help="Requests at once.")]
Networks = Annotated[
    str | None, typer.Option("--networks", metavar="CIDR,…", help="Only from these networks.")
]
Expires = Annotated[
    str | None,
    typer.Option("--expires", metavar="WHEN", help="90d, or a day such as 2027-01-31 (UTC)."),
]


@keys.command("add")
def add(  # noqa: PLR0917 - typer's options
    name: Name,
    models: Models = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    parallel: Parallel = None,
    networks: Networks = None,
    expires: Expires = None,
    config_file: ConfigFile = None,
    json_: Json = False,
    admin: Annotated[bool, typer.Option("--admin", help="May also use admin routes.")] = False,
    first: Annotated[
        bool,
        typer.Option("--first", help="Keep the key for `edged key show-first`.", hidden=True),
    ] = False,
) -> None:
    """Make a key and show it, this once."""
    with _editing(config_file) as file:
        if first and file.keyring.keys:
            return  # the package calls this at every installation
        _known(file.keyring, name, wanted=False)
        secret = auth.new_secret()
        key = Key(
            name=name,
            sha256=auth.digest(secret),
            created=float(int(time.time())),
            admin=admin,
            models=_split(models),
            rpm=rpm,
            tpm=tpm,
            parallel=parallel,
            networks=_networks(networks),
            expires=_when(expires),
        )
        if first:
            _write(file.path.with_name(auth.FIRST), f"{secret}\n", 0o600)
        file.keyring = file.keyring.with_key(key)
    if not first:
        _show(name, secret, json_=json_)


@keys.command("list")
def list_(config_file: ConfigFile = None, json_: Json = False) -> None:
    """List the keys and what each may do; the keys themselves are kept nowhere."""
    keyring = _load(_path(config_file))
    if json_:
        found = [
            {k: v for k, v in msgspec.to_builtins(key).items() if "sha256" not in k}
            for key in keyring.keys
        ]
        print(json.dumps(found, indent=2))
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for head in ("NAME", "MADE", "EXPIRES", "MODELS", "RPM", "TPM", "AT ONCE", "NETWORKS", ""):
        table.add_column(head, overflow="fold")
    for key in keyring.keys:
        has_ended = key.expires is not None and key.expires <= time.time()
        table.add_row(
            key.name,
            auth.show_time(key.created)[:10],
            "never" if key.expires is None else auth.show_time(key.expires)[:10],
            "all" if key.models is None else ", ".join(key.models),
            *(str(limit or "-") for limit in (key.rpm, key.tpm, key.parallel)),
            "-" if key.networks is None else ", ".join(key.networks),
            " ".join(["admin"] * key.admin + ["EXPIRED"] * has_ended),
        )
    if not keyring.keys:
        print("no keys; `edged key add NAME` makes one")
        return
    Console().print(table)


@keys.command("revoke")
def revoke(name: Name, config_file: ConfigFile = None) -> None:
    """Take a key away; requests that run finish."""
    with _editing(config_file) as file:
        _known(file.keyring, name, wanted=True)
        file.keyring = file.keyring.without(name)
    print(f"revoked {name}")


@keys.command("rotate")
def rotate(
    name: Name,
    config_file: ConfigFile = None,
    json_: Json = False,
    keep_old: Annotated[
        str, typer.Option("--keep-old", metavar="TIME", help="The old one stays good so long: 24h.")
    ] = "0",
    expires: Expires = None,
) -> None:
    """Give a key a new secret and show it, this once; what it may do stays."""
    with _editing(config_file) as file:
        old = _known(file.keyring, name, wanted=True)
        assert old is not None
        secret = auth.new_secret()
        kept_s = _seconds(keep_old)
        if not expires and old.expires is not None and old.expires <= time.time():
            raise BadValueError(
                f"the key ended on {auth.show_time(old.expires)[:10]}, and so would the new one: "
                "give it another end with --expires 90d"
            )
        key = msgspec.structs.replace(
            old,
            sha256=auth.digest(secret),
            expires=_when(expires) if expires else old.expires,
            old_sha256=old.sha256 if kept_s else None,
            old_until=_in(kept_s) if kept_s else None,
        )
        file.keyring = file.keyring.with_key(key)
    _show(name, secret, json_=json_)


@keys.command("show-first")
def show_first(config_file: ConfigFile = None) -> None:
    """Show the key that the installation made, once; it is kept nowhere after that."""
    path = _path(config_file)
    try:
        secret = auth.unseen(path)
        path.with_name(auth.FIRST).unlink(missing_ok=True)
    except PermissionError:
        fail("only root may see it: sudo edged key show-first")
    except ConfigError as error:
        fail(error.message)
    if secret is None:
        fail(
            "the first key was shown already, or it is not good any more, or there was none; "
            "`edged key rotate admin` makes a new one in its place"
        )
    print(secret)


# ── the file ──


class _File:
    def __init__(self, path: Path, keyring: Keyring) -> None:
        self.path = path
        self.keyring = keyring


@contextlib.contextmanager
def _editing(config_file: str | None) -> Iterator[_File]:
    """Give the keys to change, alone; what is there in the end is written if it differs."""
    path = _path(config_file)
    try:
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        fail(f"{path.parent}: {error.strerror}")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        before = _load(path)
        file = _File(path, before)
        try:
            yield file
        except (ConfigError, BadValueError) as error:
            fail(str(error))
        if file.keyring != before:
            content = auth.dump(file.keyring)
            _check(content, path)
            _write(path, content, _MODE)
    except PermissionError as error:
        fail(f"{error.filename or path}: {error.strerror}; try again with sudo")
    finally:
        os.close(handle)


def _path(config_file: str | None) -> Path:
    found = config.find(config_file or os.environ.get("EDGED_CONFIG"))
    return auth.path_beside(found.absolute())


def _load(path: Path) -> Keyring:
    try:
        return auth.load(path)
    except ConfigError as error:
        fail(error.message)


def _check(content: str, path: Path) -> None:
    """Refuse to write what could not be read again: the daemon would know no key any more."""
    try:
        auth.parse(content, path)
    except ConfigError as error:
        fail(f"nothing was changed: {error.message.replace(f'{path}: ', '')}")


def _write(path: Path, text: str, mode: int) -> None:
    """Write for the daemon: rights and owner stay as they are, a new file goes to its group."""
    if path.exists():
        mode, owner = stat.S_IMODE(path.stat().st_mode), atomic.owner(path)
    else:
        owner = os.geteuid(), _daemons_group() if mode & stat.S_IRGRP else os.getegid()
    atomic.write(path, text.encode(), mode=mode, owner=owner)


def _daemons_group() -> int:
    try:
        return grp.getgrnam(_GROUP).gr_gid
    except KeyError:  # no package: the daemon runs as who runs this
        return os.getegid()


# ── what was typed ──


def _known(keyring: Keyring, name: str, *, wanted: bool) -> Key | None:
    found = keyring.named(auth.check_name(name))
    if wanted and found is None:
        there = ", ".join(key.name for key in keyring.keys) or "none"
        raise ConfigError(f"no key is called {name!r}; there are: {there}")
    if not wanted and found is not None:
        raise ConfigError(f"there is a key {name!r} already; `edged key rotate {name}`?")
    return found


def _split(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(dict.fromkeys(each.strip() for each in text.split(",") if each.strip()))


def _networks(text: str | None) -> tuple[str, ...] | None:
    found = _split(text)
    try:
        return None if found is None else tuple(network(each) for each in found)
    except BadValueError as error:
        raise BadValueError(f"--networks {error}") from None


def _seconds(text: str) -> float:
    try:
        return duration_or_zero(text)
    except BadValueError as error:
        raise BadValueError(f"the time {error}") from None


def _in(seconds: float) -> float:
    """Return the time this many s from now; raises BadValueError where no date is so late."""
    when = float(int(time.time() + seconds))
    if when > _LAST:
        raise BadValueError("the time is beyond the year 9999")
    return when


def _when(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        day = dt.datetime.fromisoformat(text)
    except ValueError:
        ends = _in(_seconds(text))
    else:
        ends = (day if day.tzinfo else day.replace(tzinfo=dt.UTC)).timestamp()
    if ends <= time.time():
        raise BadValueError(f"--expires {text} is past; `edged key revoke NAME` takes a key away")
    return ends


def _show(name: str, secret: str, *, json_: bool) -> None:
    if json_:
        found: dict[str, Any] = {"name": name, "key": secret}
        print(json.dumps(found))
        return
    typer.echo(f"The key `{name}`, shown this once:", err=True)
    print(secret)
