"""From the bytes of a request to a checked Struct, within limits of size and time."""

from __future__ import annotations

import asyncio
import re
from typing import Any, TypeVar

import msgspec
from litestar import Request

from edged import errors
from edged.config import Server

_IDLE_LIMIT_S = 20.0  # between two pieces of a body
_WHOLE_LIMIT_S = 300.0
_PATH = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")

T = TypeVar("T")


async def read_json(request: Request[Any, Any, Any], server: Server) -> dict[str, Any]:
    """Receive the body and return its JSON object.

    Raises UnsupportedMediaType, BodyTooLarge, ClientTooSlow, ClientGone and InvalidJson.
    """
    _check_media(request)
    body = await _receive(request, server.max_body_bytes)
    if not body.strip():
        raise errors.InvalidJson("the body is empty; a JSON object is wanted")
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise errors.InvalidJson("the body's JSON is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise errors.InvalidJson(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise errors.InvalidJson("the body's JSON is not an object")
    return value


def convert(value: Any, kind: type[T], at: str = "") -> T:
    """Return `value`, as decoded from JSON and found at the path `at`, as a Struct `kind`.

    Raises InvalidRequest whose `param` is the path of the offending field: `messages[0].role`.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        found = _PATH.search(text)
        path = found["path"].replace("[...]", "") if found else ""  # [...] is any key of a dict
        path = f"{at}.{path}".strip(".")
        if missing := _MISSING.search(text):
            path = f"{path}.{missing['field']}" if path else missing["field"]
            raise errors.InvalidRequest(f"`{path}` is missing", param=path) from None
        reason = (text[: found.start()] if found else text).replace(" | null`", "`")
        where = f"`{path}`: " if path else ""
        raise errors.InvalidRequest(
            where + reason[:1].lower() + reason[1:], param=path or None
        ) from None
    except RecursionError:
        raise errors.InvalidJson("the body's JSON is nested too deeply") from None


def _check_media(request: Request[Any, Any, Any]) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not re.fullmatch(r"application/.+\+json", kind):
        raise errors.UnsupportedMediaType(
            f"the body says {kind[:100]!r}; send it with `Content-Type: application/json`"
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise errors.UnsupportedMediaType("compressed bodies are not read; send it as it is")


async def _receive(request: Request[Any, Any, Any], limit_bytes: int) -> bytes:
    too_large = errors.BodyTooLarge(
        f"the body is larger than the {limit_bytes:,} bytes that `server.max_body` allows"
    )
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > limit_bytes:
        raise too_large
    pieces: list[bytes] = []
    n_bytes = 0
    more = True
    try:
        async with asyncio.timeout(_WHOLE_LIMIT_S):
            while more:
                async with asyncio.timeout(_IDLE_LIMIT_S):
                    message: Any = await request.receive()
                if message["type"] == "http.disconnect":
                    raise errors.ClientGone("the client left before its request was complete")
                piece = message.get("body", b"")
                n_bytes += len(piece)
                if n_bytes > limit_bytes:
                    raise too_large
                pieces.append(piece)
                more = message.get("more_body", False)
    except TimeoutError:
        raise errors.ClientTooSlow(
            f"the body did not arrive in time; {n_bytes:,} bytes came so far"
        ) from None
    return b"".join(pieces)
