"""The shapes of every error that leaves the API, and how any exception gets one."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Protocol

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


class _Body(Protocol):
    def __call__(self, error: EdgedError, request_id: str) -> dict[str, Any]: ...


class Shape(NamedTuple):
    """How errors look in one family of dialects."""

    body: _Body
    event: bytes  # what precedes the data of an error inside a stream

    def sse(self, error: EdgedError, request_id: str) -> bytes:
        """Return the error as the last event of a stream."""
        return self.event + b"data: " + msgspec.json.encode(self.body(error, request_id)) + b"\n\n"


def _openai(error: EdgedError, request_id: str) -> dict[str, Any]:  # noqa: ARG001
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
_FIGURES = re.compile(r"(\d+) tokens\D+(\d+) tokens")


def _anthropic_message(error: EdgedError) -> str:
    found = _FIGURES.search(error.message)
    if not found or not isinstance(error, errors.ContextLengthExceeded):
        return error.message
    # Claude Code looks for these words and figures, and makes its conversation shorter.
    return f"prompt is too long: {found[1]} tokens > {found[2]} maximum; {error.message}"


def _anthropic(error: EdgedError, request_id: str) -> dict[str, Any]:
    return {
        "type": "error",
        "error": {
            "type": _ANTHROPIC_TYPES.get(error.status, "invalid_request_error"),
            "message": _anthropic_message(error),
            "details": {"error_code": error.code, "param": error.param},
        },
        "request_id": request_id,
    }


OPENAI = Shape(_openai, b"")
ANTHROPIC = Shape(_anthropic, b"event: error\n")

# By path and not by route: a wrong method or a client that may not come in matches no route.
_SHAPES = {"/v1/messages": ANTHROPIC}


def shape_of(path: str) -> Shape:
    """Return how errors look at this path and below it; at most paths as OpenAI's."""
    found = (shape for root, shape in _SHAPES.items() if f"{path}/".startswith(f"{root}/"))
    return next(found, OPENAI)


def sse(error: EdgedError) -> bytes:
    """Return the error as the last event of one of OpenAI's streams."""
    return OPENAI.sse(error, "")


def headers(error: EdgedError) -> dict[str, str]:
    """Return the headers that go with `error`."""
    wait_s = error.retry_after_s or _RETRY_AFTER_S.get(error.status)
    found = {"retry-after": str(wait_s)} if wait_s else {}
    if error.status == errors.InvalidApiKey.status:
        found["www-authenticate"] = "Bearer"
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
    body = shape_of(exchange.path).body(error, exchange.id)
    return Response(body, status_code=error.status, headers=more, media_type="application/json")


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
