"""Orders to the daemon: `/admin/…`, for the admin socket and for admin keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from litestar import Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.response import Stream

from edged import errors, log
from edged.api.box import Applied, box_of
from edged.api.exchange import Exchange
from edged.status import ModelStatus

_STATUS_S = 1.0  # between two of the status stream
_KEEP_ALIVE_S = 10.0  # a log on which nothing is written gets an empty line this often
_LINES = 100


def _may(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    if not Exchange.of(connection.scope).admin:
        raise errors.AdminOnly(
            "orders are taken on the daemon's own socket, or with an admin key: use the `edged` "
            "command on the box, as root or as a member of the group that edged runs as"
        )


@post("/admin/reload", guards=[_may], status_code=200)
async def reload(request: Request[Any, Any, Any]) -> Response[Applied]:
    """Bring models.toml into force now; 400 with every problem when it cannot be."""
    return _json(await box_of(request).reload())


@post("/admin/load/{name:path}", guards=[_may], status_code=200)
async def load(request: Request[Any, Any, Any]) -> Response[ModelStatus]:
    """Load a model and answer when it serves."""
    await box_of(request).load(_name(request))
    return _status_of(request)


@post("/admin/unload/{name:path}", guards=[_may], status_code=200)
async def unload(request: Request[Any, Any, Any]) -> Response[ModelStatus]:
    """Let its requests finish, stop its worker, answer when it is gone."""
    await box_of(request).unload(_name(request))
    return _status_of(request)


@post("/admin/drain/{name:path}", guards=[_may], status_code=200)
async def drain(request: Request[Any, Any, Any]) -> Response[ModelStatus]:
    """As unload, and refuse its requests until it is loaded by hand."""
    await box_of(request).drain(_name(request))
    return _status_of(request)


@get("/admin/status", guards=[_may])
async def status(request: Request[Any, Any, Any]) -> Stream:
    """Stream what `/status` says, every second, as server-sent events."""
    box = box_of(request)

    async def events() -> AsyncGenerator[bytes, None]:
        while True:
            yield b"data: " + msgspec.json.encode(box.status()) + b"\n\n"
            await asyncio.sleep(_STATUS_S)

    return Stream(events(), media_type="text/event-stream")


@get("/admin/log", guards=[_may])
async def log_tail(request: Request[Any, Any, Any]) -> Stream:
    """Send the last `lines` of the log; with `follow` also those that come, until the client goes.

    Plain text. A model's name selects nothing: pick with grep.
    """
    lines = request.query_params.get("lines", str(_LINES))
    if not (lines.isascii() and lines.isdecimal()):
        raise errors.InvalidRequest("`lines` must be a whole number", param="lines")
    number = max(0, log.tail.written - int(lines))
    follow = request.query_params.get("follow", "") in ("true", "1")
    return Stream(_lines(number, follow=follow), media_type="text/plain; charset=utf-8")


async def _lines(number: int, *, follow: bool) -> AsyncGenerator[bytes, None]:
    loop, arrived = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        loop.call_soon_threadsafe(arrived.set)

    log.tail.listeners.add(tell)
    try:
        while True:
            arrived.clear()
            new, number = log.tail.since(number), log.tail.written
            if new or not follow:
                yield "".join(f"{line}\n" for line in new).encode()
            if not follow:
                return
            try:
                await asyncio.wait_for(arrived.wait(), _KEEP_ALIVE_S)
            except TimeoutError:
                yield b"\n"
    finally:
        log.tail.listeners.discard(tell)


def _name(request: Request[Any, Any, Any]) -> str:
    return str(request.scope["path"]).split("/", 3)[3]  # it may contain slashes


def _status_of(request: Request[Any, Any, Any]) -> Response[ModelStatus]:
    box = box_of(request)
    model = box.plan.resolve(_name(request)).model.name
    return _json(next(each for each in box.status().models if each.name == model))


def _json(content: Any) -> Response[Any]:
    return Response(content, media_type="application/json", status_code=200)


ROUTES = (reload, load, unload, drain, status, log_tail)
