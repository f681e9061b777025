"""The one shape of every error that leaves the API, and how any exception gets it."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request
from litestar.exceptions import HTTPException
from litestar.response import Response

from edged import errors
from edged.api.exchange import Exchange
from edged.errors import EdgedError
from edged.log import get_logger

# Clients wait this long, in s, when an error of these kinds names no time of its own.
_RETRY_AFTER_S = {429: 1, 503: 5}


def shape(error: EdgedError) -> dict[str, Any]:
    """Return OpenAI's error object for `error`."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def sse(error: EdgedError) -> bytes:
    """Return the error as the last event of a stream."""
    return b"data: " + msgspec.json.encode(shape(error)) + b"\n\n"


def headers(error: EdgedError) -> dict[str, str]:
    """Return the headers that go with `error`."""
    wait_s = error.retry_after_s or _RETRY_AFTER_S.get(error.status)
    found = {"retry-after": str(wait_s)} if wait_s else {}
    if error.status == errors.ClientTooSlow.status:
        found["connection"] = "close"  # what still trickles in is not a request
    return found


def respond(request: Request[Any, Any, Any], exception: Exception) -> Response[dict[str, Any]]:
    """Turn whatever a handler or the router raised into a response."""
    error = known(exception)
    exchange = Exchange.of(request.scope)
    exchange.error = error.code
    if error.status == errors.InternalError.status:
        get_logger().error("request.failed", request_id=exchange.id, exc_info=exception)
    more = headers(error)
    if isinstance(exception, HTTPException):
        more |= exception.headers or {}  # Allow, with 405
    return Response(
        shape(error), status_code=error.status, headers=more, media_type="application/json"
    )


def known(exception: BaseException) -> EdgedError:
    """Return `exception` as one of our tree; what is unexpected keeps its details to the log."""
    match exception:
        case EdgedError():
            return exception
        case HTTPException(status_code=404):
            return errors.UnknownPath("no such path; GET /v1/models lists what can be asked")
        case HTTPException(status_code=405):
            return errors.MethodNotAllowed("this path does not take this method; see Allow")
        case HTTPException() if exception.status_code < errors.InternalError.status:
            return errors.InvalidRequest(exception.detail)
        case _:
            return errors.InternalError("internal error; the daemon's log has the details")
