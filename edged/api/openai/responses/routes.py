"""The paths below `/v1/responses`."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import HttpMethod, Request, delete, post, route
from litestar.params import FromPath
from litestar.types import ASGIApp, Receive, Scope, Send

from edged import errors
from edged.api import adapters, media
from edged.api.box import box_of
from edged.api.call import call
from edged.api.entry import Entry
from edged.api.events import Answer, send_json
from edged.api.exchange import Exchange
from edged.api.openai.envelope import encode
from edged.api.openai.responses import request as wire_request
from edged.api.openai.responses import state
from edged.api.openai.responses.background import Background, Events, Follow, Running
from edged.api.openai.responses.items import decoded
from edged.api.openai.responses.listing import Page, flag, number, pick
from edged.api.openai.responses.reply import ResponseReply
from edged.protocol import Render, Rendered
from edged.store.responses import Row

_READ = [HttpMethod.GET, HttpMethod.HEAD]


@post("/v1/responses", status_code=200)
async def create(request: Request[Any, Any, Any]) -> ASGIApp:
    """Answer, whole or streamed; or begin to, in the background."""
    entry = await Entry.of(request)
    if (upstream := entry.upstream("/responses")) is not None:
        return upstream
    wire, entry.exchange.ignored_fields = wire_request.read(entry.raw)
    store, owner = entry.box.responses, entry.exchange.owner
    keeps = state.stores(wire, store)
    earlier = await state.earlier(wire, entry.box, owner)
    items = await state.resolved(wire, store, owner)
    prompt, choice = wire_request.to_prompt(wire, earlier, items)
    generate = wire_request.to_generate(wire, prompt, choice)
    generate = adapters.dressed(entry, generate, wire.lora)
    with wire_request.own_names():
        generate = await media.loaded(entry, generate)
    reply = ResponseReply(
        wire_request.to_response(wire, entry.plan, store=keeps),
        sealed=wire_request.wants(wire, "reasoning.encrypted_content"),
    )
    streamed = bool(wire.stream)
    entry.exchange.stream = streamed
    answer = Answer(
        entry.box, entry.model, [generate], reply, stream=streamed or bool(wire.background)
    )
    record = state.Record(reply, items, owner) if keeps else None
    if wire.background:
        assert record is not None
        return await _begin(entry, answer, record, streamed=streamed)
    return state.Stored(answer, record, store)


async def _begin(entry: Entry, answer: Answer, record: state.Record, *, streamed: bool) -> ASGIApp:
    model = entry.plan.model
    running = Running(answer, record, entry.box.responses, model=model.name, streamed=streamed)
    body = await Background.of(entry.request.app).begin(
        running, entry.exchange, most=max(model.queue, model.parallel)
    )
    return Follow(running.events) if running.events else _json(body)


@post("/v1/responses/input_tokens", status_code=200)
async def input_tokens(request: Request[Any, Any, Any]) -> ASGIApp:
    """Count what a request would give the model to read, without an answer."""
    entry = await Entry.of(request)
    if (upstream := entry.upstream("/responses/input_tokens")) is not None:
        return upstream
    wire, entry.exchange.ignored_fields = wire_request.read(entry.raw)
    store, owner = entry.box.responses, entry.exchange.owner
    earlier = await state.earlier(wire, entry.box, owner)
    items = await state.resolved(wire, store, owner)
    prompt, choice = wire_request.to_prompt(wire, earlier, items)
    if choice.mode == "none":  # the model is not shown them
        prompt = msgspec.structs.replace(prompt, tools=None)
    with wire_request.own_names():
        wanted = Render(await media.load(entry, prompt))
        rendered = await call(request, entry.model, wanted, Rendered)
    return _json(encode({"object": "response.input_tokens", "input_tokens": rendered.n_tokens}))


@route("/v1/responses/{response_id:str}", http_method=_READ)
async def show(request: Request[Any, Any, Any], response_id: FromPath[str]) -> ASGIApp:
    """Return a stored response; one that runs, as far as it is; or its events again."""
    query = request.query_params
    pick(query, {"stream", "starting_after", "include", "include_obfuscation"})
    streamed, after = flag(query, "stream"), number(query, "starting_after", low=0)
    if flag(query, "include_obfuscation"):
        raise errors.UnsupportedParameter(
            "`include_obfuscation` is not supported; leave it out", param="include_obfuscation"
        )
    if after is not None and not streamed:
        raise errors.InvalidRequest("`starting_after` needs `stream=true`", param="starting_after")
    owner = Exchange.of(request.scope).owner
    running = Background.of(request.app).find(response_id, owner)
    if streamed:
        row = None if running else await _row(request, response_id)
        events = running.events if running else row and row.events and Events.stored(row.events)
        if not events:
            raise errors.InvalidRequest(
                "only a response that was created with `background: true` and `stream: true` "
                "can be streamed again; leave `stream` out",
                param="stream",
            )
        return Follow(events, -1 if after is None else after)
    if running is not None:
        return _json(encode(running.record.reply.now()))
    return _json(state.body_of(await _row(request, response_id)))


@delete("/v1/responses/{response_id:str}", status_code=200)
async def remove(request: Request[Any, Any, Any], response_id: FromPath[str]) -> ASGIApp:
    """Delete a stored response; one that runs is cancelled before."""
    owner = Exchange.of(request.scope).owner
    background = Background.of(request.app)
    if background.find(response_id, owner) is not None:
        await background.cancel(response_id)
    if not await box_of(request).responses.delete(response_id, owner):
        raise _not_found(response_id)
    return _json(encode({"id": response_id, "object": "response", "deleted": True}))


@post("/v1/responses/{response_id:str}/cancel", status_code=200)
async def cancel(request: Request[Any, Any, Any], response_id: FromPath[str]) -> ASGIApp:
    """End a background response; one that has ended stays as it is."""
    owner = Exchange.of(request.scope).owner
    background = Background.of(request.app)
    if background.find(response_id, owner) is not None:
        await background.cancel(response_id)
    row = await _row(request, response_id)
    if not state.is_background(row):
        raise errors.InvalidRequest(
            "only a response that was created with `background: true` can be cancelled; "
            "another one ends when its client closes the connection"
        )
    return _json(state.body_of(row))


@route("/v1/responses/{response_id:str}/input_items", http_method=_READ)
async def input_items(request: Request[Any, Any, Any], response_id: FromPath[str]) -> ASGIApp:
    """List the items that the model read, those of the earlier conversation included."""
    page = Page.of(request.query_params)
    owner = Exchange.of(request.scope).owner
    row = await _row(request, response_id)
    items = decoded(row.input)
    if row.previous_id is not None:
        rows = await state.conversation(row.previous_id, box_of(request), owner)
        items = [*state.said_in(rows), *items]
    return _json(page.cut(items))


async def _row(request: Request[Any, Any, Any], response_id: str) -> Row:
    owner = Exchange.of(request.scope).owner
    row = await box_of(request).responses.get(response_id, owner)
    if row is None:
        raise _not_found(response_id)
    return row


def _not_found(response_id: str) -> errors.ResponseNotFound:
    return errors.ResponseNotFound(
        f"response with id '{response_id[:100]}' not found; it was never stored "
        "(`store: false`), was deleted, or is older than `[server] responses_keep`"
    )


def _json(body: bytes) -> ASGIApp:
    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send_json(send, body)

    return answer
