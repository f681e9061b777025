"""Ask a worker for something that is no generation, as long as the client waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.types import Receive, Scope, Send

from edged import errors
from edged.api.box import box_of
from edged.api.events import disconnected, send_json
from edged.api.exchange import Exchange
from edged.protocol import Call, Failed, Usage

_Wanted = TypeVar("_Wanted")


async def call(
    request: Request[Any, Any, Any], model: str, wanted: Call, kind: type[_Wanted]
) -> _Wanted:
    """Return the reply of `model` to `wanted`, which is of `kind`.

    Raises EdgedError; ClientGone when nobody waits any more, and then the call is aborted.
    """
    answer = asyncio.create_task(_first(request, model, wanted))
    watch = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise errors.ClientGone("the client left before the answer")
        event = answer.result()
    finally:
        for task in (answer, watch):
            task.cancel()
    if isinstance(event, Failed):
        raise errors.from_code(event.code, event.message, event.param)
    assert isinstance(event, kind), type(event).__name__
    usage_tokens = getattr(event, "prompt_tokens", None)
    if usage_tokens is not None:
        exchange = Exchange.of(request.scope)
        exchange.prompt_tokens = usage_tokens
        box_of(request).access.charge(exchange, usage_tokens)
        box_of(request).metrics.usage(model, Usage(prompt_tokens=usage_tokens))
    return event


async def _first(request: Request[Any, Any, Any], model: str, wanted: Call) -> Any:
    async with contextlib.aclosing(box_of(request).generate(model, wanted)) as events:
        async for event in events:
            return event
    raise errors.InternalError("the worker gave no answer")


class Json:
    """ASGI application that sends `value`, for routes that may also pass a request through."""

    def __init__(self, value: Any) -> None:
        self._body = msgspec.json.encode(value)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answer the request of this scope."""
        await send_json(send, self._body)
