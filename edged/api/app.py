"""The HTTP front of the daemon: routes, who may come in, and how every request ends."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

from litestar import Litestar, Request
from litestar.datastructures import State
from litestar.enums import ScopeType

from edged import errors
from edged.api import admin, status, tokens, upstream
from edged.api import error as api_error
from edged.api.anthropic import messages
from edged.api.box import Box, box_of
from edged.api.exchange import Exchange
from edged.api.openai import chat, completions, embeddings, models, rerank
from edged.api.openai.responses import background, routes

if TYPE_CHECKING:
    from litestar.types import (
        HTTPScope,
        LifeSpanReceive,
        LifeSpanScope,
        LifeSpanSend,
        Message,
        Receive,
        Scope,
        Send,
    )

__all__ = ["Box", "box_of", "create_app"]


def create_app(box: Box) -> Litestar:
    """Return the ASGI application that serves `box`."""
    return _Api(
        route_handlers=[
            chat.create,
            completions.create,
            embeddings.create,
            rerank.create,
            messages.create,
            messages.count_tokens,
            tokens.tokenize,
            tokens.detokenize,
            tokens.apply_template,
            tokens.input_tokens,
            routes.create,
            routes.input_tokens,
            routes.show,
            routes.remove,
            routes.cancel,
            routes.input_items,
            models.index,
            models.show,
            status.health,
            status.ready,
            status.status,
            status.metrics,
            *admin.ROUTES,
        ],
        exception_handlers={Exception: api_error.respond},
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,  # api/body.py has the limit of models.toml
        state=State({"box": box}),
        on_shutdown=[background.close, upstream.close],
    )


class _Api(Litestar):
    """Litestar inside what holds for every request, also for those that match no route."""

    async def __call__(
        self,
        scope: Scope | LifeSpanScope,
        receive: Receive | LifeSpanReceive,
        send: Send | LifeSpanSend,
    ) -> None:
        """Serve one connection of ASGI."""
        if scope["type"] == ScopeType.HTTP:
            await self._exchange(
                cast("HTTPScope", scope), cast("Receive", receive), cast("Send", send)
            )
        else:
            await super().__call__(scope, receive, send)

    async def _exchange(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        box = cast("Box", self.state["box"])
        exchange = Exchange.open(scope, box.admin_socket)
        # The second one is where Anthropic's clients look for it.
        stamps = [(name, exchange.id.encode()) for name in (b"x-request-id", b"request-id")]

        def send_stamped(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *stamps]
            return send(message)

        try:
            if _allowed(exchange.client, box.plan.config.server.allow):
                await super().__call__(scope, receive, send_stamped)
            else:
                await self._turn_away(exchange, Request(scope, receive), send_stamped)
        finally:
            exchange.endpoint = str(scope.get("path_template", ""))
            exchange.close(box.metrics)

    async def _turn_away(
        self, exchange: Exchange, request: Request[Any, Any, Any], send: Send
    ) -> None:
        error = errors.NetworkNotAllowed(
            f"{exchange.client} is in none of the networks of `server.allow`"
        )
        response = api_error.respond(request, error).to_asgi_response(app=None, request=request)
        await response(request.scope, request.receive, send)


@functools.lru_cache(1024)
def _allowed(client: str, networks: tuple[str, ...]) -> bool:
    """Return whether the address is in one of the networks; a unix socket has its own rights."""
    if client == "unix":
        return True
    address = ipaddress.ip_address(client.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in ipaddress.ip_network(network) for network in networks)
