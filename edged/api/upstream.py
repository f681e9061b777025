"""Models that another OpenAI-compatible server answers: passed through, but for the name."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Litestar
from litestar.types import Receive, Scope, Send

from edged import errors
from edged.api import error as api_error
from edged.api.events import STALLED_CLIENT_S, disconnected
from edged.api.exchange import Exchange
from edged.plan import ModelPlan

if TYPE_CHECKING:
    import httpx

_CONNECT_LIMIT_S = 5.0
_SILENCE_LIMIT_S = 600.0  # a long prefill over there sends nothing
_SENT_HEADERS = (b"anthropic-version", b"anthropic-beta")
_PASSED_HEADERS = ("content-type", "retry-after")


class PassThrough:
    """ASGI application that hands one request to the model's upstream and its bytes back.

    Raises ServiceUnavailable when the upstream cannot be reached or says nothing.
    """

    def __init__(
        self, app: Litestar, plan: ModelPlan, path: str, raw: dict[str, Any], *, root: bool = False
    ) -> None:
        base = f"{plan.model.upstream}".rstrip("/")
        self._app = app
        self._url = (base.removesuffix("/v1") if root else base) + path
        self._model = plan.model.name
        self._body = msgspec.json.encode({**raw, "model": plan.model.name})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request of this scope."""
        exchange = Exchange.of(scope)
        work = asyncio.create_task(self._carry(scope, exchange, send))
        watch = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            else:
                exchange.finish = exchange.error = errors.ClientGone.code
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.wait((work, watch), timeout=_CONNECT_LIMIT_S)

    async def _carry(self, scope: Scope, exchange: Exchange, send: Send) -> None:
        import httpx  # noqa: PLC0415 -- only a box with upstream models pays its memory

        opened = False
        headers = {b"content-type": b"application/json", b"x-request-id": exchange.id.encode()}
        headers |= {name: value for name, value in scope["headers"] if name in _SENT_HEADERS}
        try:
            async with _client(self._app).stream(
                "POST", self._url, content=self._body, headers=headers
            ) as response:
                await send(
                    {
                        "type": "http.response.start",
                        "status": response.status_code,
                        "headers": [
                            (name.encode(), response.headers[name].encode())
                            for name in _PASSED_HEADERS
                            if name in response.headers
                        ],
                    }
                )
                opened = True
                async for piece in response.aiter_bytes():
                    async with asyncio.timeout(STALLED_CLIENT_S):
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except httpx.HTTPError as error:
            problem = errors.ServiceUnavailable(
                f"the upstream of `{self._model}` does not answer: {error or type(error).__name__}"
            )
            if not opened:
                raise problem from error
            last = api_error.shape_of(exchange.path).sse(problem, exchange.id)
            await send({"type": "http.response.body", "body": last, "more_body": False})


def _client(app: Litestar) -> httpx.AsyncClient:
    """Return the app's one client; it keeps connections open between requests."""
    import httpx  # noqa: PLC0415

    if "upstream" not in app.state:
        limits = httpx.Timeout(_SILENCE_LIMIT_S, connect=_CONNECT_LIMIT_S)
        app.state["upstream"] = httpx.AsyncClient(timeout=limits, trust_env=False)
    client: httpx.AsyncClient = app.state["upstream"]
    return client


async def close(app: Litestar) -> None:
    """Close what `_client` opened."""
    with contextlib.suppress(KeyError):
        await app.state["upstream"].aclose()
