"""`edged reload | load | unload | drain | logs`: orders to the daemon, over its own socket."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer

from edged.cli.client import Json, fail, message_of, reach
from edged.config import Listen
from edged.store import folders

_PACKAGED = Path("/run/edged/admin.sock")
_DECIDE_LIMIT_S = 90.0  # the daemon gives itself 60 for the files
_SETTLE_LIMIT_S = 900.0  # a model that loads, or whose requests end; the daemon has its own limits
_CONNECT_LIMIT_S = 5.0

Socket = Annotated[
    str | None,
    typer.Option(
        "--socket",
        envvar="EDGED_ADMIN_SOCKET",
        metavar="PATH",
        help="The daemon's admin socket; without it this user's daemon, else the service.",
    ),
]
Name = Annotated[str, typer.Argument(metavar="MODEL", help="A model or one of its aliases.")]


def reload(socket: Socket = None, json_: Json = False) -> None:
    """Bring models.toml into force now, and say what changed.

    Exits with 1 and every problem when the file cannot be used; what runs then stays as it is.
    """
    applied = _post("/admin/reload", socket, _DECIDE_LIMIT_S)
    if json_:
        print(json.dumps(applied, indent=2))
        return
    change = applied["change"]
    print(f"generation {applied['generation']} is in force, {1000 * applied['seconds']:.0f} ms")
    for kind in ("added", "removed", "replaced", "updated"):
        if change[kind]:
            print(f"  {kind}: {', '.join(change[kind])}")
    if change["server"]:
        print("  changed: [server]")


def load(name: Name, socket: Socket = None, json_: Json = False) -> None:
    """Load a model and wait until it serves; ends its drain."""
    _order("load", name, socket, json_=json_)


def unload(name: Name, socket: Socket = None, json_: Json = False) -> None:
    """Stop a model's worker when its requests have ended; the next request loads it again."""
    _order("unload", name, socket, json_=json_)


def drain(name: Name, socket: Socket = None, json_: Json = False) -> None:
    """Take a model out of service: as unload, and refuse its requests until `edged load`."""
    _order("drain", name, socket, json_=json_)


def logs(
    lines: Annotated[
        int, typer.Option("-n", "--lines", min=0, max=2000, help="So many of the last lines.")
    ] = 100,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="And those to come.")] = False,
    socket: Socket = None,
) -> None:
    """Show what the daemon and its workers have logged."""
    query = {"lines": str(lines), "follow": "true" if follow else "false"}
    with _daemon(socket, None if follow else _DECIDE_LIMIT_S) as client:
        try:
            with client.stream("GET", "/admin/log", params=query) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    fail(message_of(response))
                for line in response.iter_lines():
                    if line:
                        print(line, flush=True)
        except KeyboardInterrupt:
            return


def _order(verb: str, name: str, socket: str | None, *, json_: bool) -> None:
    found = _post(f"/admin/{verb}/{quote(name, safe='/')}", socket, _SETTLE_LIMIT_S)
    if json_:
        print(json.dumps(found, indent=2))
    else:
        print(f"{found['name']} is {found['state']}" + (f": {e}" if (e := found["error"]) else ""))


def _post(path: str, socket: str | None, limit_s: float) -> dict[str, Any]:
    with _daemon(socket, limit_s) as client:
        response = client.post(path)
    if response.status_code != httpx.codes.OK:
        fail(message_of(response))
    found: dict[str, Any] = response.json()
    return found


@contextlib.contextmanager
def _daemon(socket: str | None, limit_s: float | None) -> Iterator[httpx.Client]:
    """Give a client of the admin socket; a failure becomes one line and exit code 1."""
    path = Path(socket) if socket else find()
    listen = Listen("unix", path=str(path))
    with reach(None, listen) as client:
        client.timeout = httpx.Timeout(limit_s, connect=_CONNECT_LIMIT_S)
        try:
            yield client
        except httpx.ConnectError as error:
            denied = "Permission denied" in str(error)
            fail(
                f"no right to give orders at {path}: use sudo, or join the group of its file"
                if denied
                else f"edged does not answer at {path} ({error}); is it running? "
                "Say where its socket is with --socket"
            )
        except httpx.HTTPError as error:
            fail(f"edged at {path} broke off: {error or type(error).__name__}")


def find() -> Path:
    """Return the socket of this user's daemon, else the service's."""
    own = folders.admin_socket()
    return next((path for path in (own, _PACKAGED) if _is_socket(path)), own)


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return False
