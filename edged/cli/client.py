"""How a command finds the running daemon and speaks with it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, NoReturn

import httpx
import typer

from edged import config
from edged.config import Listen, Server
from edged.errors import ConfigError

_LIMIT_S = 10.0
_CONNECT_LIMIT_S = 5.0

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="EDGED_URL",
        metavar="URL",
        help="Where the daemon is; without it, where models.toml says.",
    ),
]
ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Without it ./models.toml, else /etc/edged/models.toml.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


def reach(url: str | None, listen: Listen | None, *, limit_s: float = _LIMIT_S) -> httpx.Client:
    """Return a client of the daemon at `url`, else at `listen`; nothing is sent yet."""
    base, socket_path = _where(url, listen)
    return httpx.Client(
        base_url=base,
        transport=httpx.HTTPTransport(uds=socket_path),
        timeout=httpx.Timeout(limit_s, connect=_CONNECT_LIMIT_S),
    )


@contextlib.contextmanager
def connected(url: str | None, *, limit_s: float = _LIMIT_S) -> Iterator[httpx.Client]:
    """Give a client of the daemon; a failure inside becomes one line and exit code 1."""
    listen = None if url else _first_listen()
    with reach(url, listen, limit_s=limit_s) as client, _explained(url or str(listen)):
        yield client


@contextlib.asynccontextmanager
async def connected_async(
    url: str | None, *, limit_s: float = _LIMIT_S
) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client for several requests at once; failures as in `connected`.

    Cancelling a request closes its connection, at which the daemon aborts it.
    """
    listen = None if url else _first_listen()
    base, socket_path = _where(url, listen)
    client = httpx.AsyncClient(
        base_url=base,
        transport=httpx.AsyncHTTPTransport(uds=socket_path),
        timeout=httpx.Timeout(limit_s, connect=_CONNECT_LIMIT_S),
    )
    async with client:
        with _explained(url or str(listen)):
            yield client


@contextlib.contextmanager
def _explained(shown: str) -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        fail(
            f"edged does not answer at {shown} ({error}); start it with `edged serve`, "
            "or say where it is with --url"
        )
    except httpx.UnsupportedProtocol:
        fail(f"{shown} is not a URL; write it like http://127.0.0.1:8000")
    except httpx.HTTPError as error:
        fail(f"edged at {shown} broke off: {error or type(error).__name__}")


def fetch(client: httpx.Client, path: str) -> Any:
    """Return the JSON at `path`; an error answer becomes one line and exit code 1."""
    response = client.get(path)
    if response.status_code != httpx.codes.OK:
        fail(message_of(response))
    return response.json()


def message_of(response: httpx.Response) -> str:
    """Return what an error answer says."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.url} answers {response.status_code}: is this edged?"


def fail(message: str) -> NoReturn:
    """End the command with one line on stderr and exit code 1."""
    print(f"edged: {message}", file=sys.stderr)
    raise typer.Exit(1)


def _where(url: str | None, listen: Listen | None) -> tuple[str, str | None]:
    """Return the base URL, and the path of the unix socket if it is one."""
    if url is not None and url.startswith("unix:"):
        return "http://edged", url.removeprefix("unix:")
    if url is not None:
        return url.rstrip("/").removesuffix("/v1"), None
    return _address(listen or Server().listen[0])


def _first_listen() -> Listen:
    path = config.find(os.environ.get("EDGED_CONFIG"))
    try:
        return config.load(path).server.listen[0]
    except ConfigError:
        return Server().listen[0]  # a broken file does not hide a running daemon


def _address(listen: Listen) -> tuple[str, str | None]:
    if listen.kind == "unix":
        return "http://edged", listen.path
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)  # noqa: S104
    return (
        f"http://[{host}]:{listen.port}" if ":" in host else f"http://{host}:{listen.port}"
    ), None
