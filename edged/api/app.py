"""The HTTP front of the daemon: routes, who may come in, and how every request ends."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

from litestar import Litestar, Request
from litestar.datastructures import State
from litestar.enums import ScopeType

from edged.api import admin, status, tokens, upstream
from edged.api import error as api_error
from edged.api.access import Visit
from edged.api.anthropic import messages
from edged.api.box import Box, box_of
from edged.api.exchange import Exchange
from edged.api.openai import chat, completions, embeddings, models, rerank
from edged.api.openai.responses import background, routes
from edged.errors import EdgedError

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
            status.ca,
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
                message["headers"] = [*message["headers"], *stamps, *visit.headers()]
            return send(message)

        visit = Visit(box.access, box.plan.config.server, scope, exchange)
        try:
            await visit.admit()
        except EdgedError as error:
            await self._turn_away(error, Request(scope, receive), send_stamped)
        else:
            if visit.answers_preflight:
                await send_stamped({"type": "http.response.start", "status": 204, "headers": []})
                await send_stamped({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await super().__call__(scope, receive, send_stamped)
        finally:
            exchange.endpoint = str(scope.get("path_template", ""))
            exchange.close(box.metrics)
            visit.leave()

    async def _turn_away(
        self, error: EdgedError, request: Request[Any, Any, Any], send: Send
    ) -> None:
        response = api_error.respond(request, error).to_asgi_response(app=None, request=request)
        await response(request.scope, request.receive, send)
