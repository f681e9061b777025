"""Between responses: conversations that go on, and what is stored of each answer."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
from litestar.types import Message, Receive, Scope, Send

from edged import errors
from edged.api.box import Box
from edged.api.events import Answer
from edged.api.openai.envelope import encode
from edged.api.openai.responses.items import decoded, encoded, given, kept
from edged.api.openai.responses.reply import ResponseReply
from edged.api.openai.responses.request import own_names
from edged.api.openai.responses.schema import Item, ItemReference, ResponseRequest
from edged.api.openai.responses.shape import Problem
from edged.store.responses import Responses, Row

_GOES_ON = ("completed", "incomplete")


def stores(wire: ResponseRequest, store: Responses) -> bool:
    """Return whether the response is kept: asked for unless said otherwise, and allowed.

    Raises UnsupportedParameter when it must be and cannot.
    """
    if wire.store is False:
        return False
    if not store.limits.keeps_nothing:
        return True
    for name in ("store", "background"):
        if getattr(wire, name):
            raise errors.UnsupportedParameter(
                f"`{name}` is not supported here: this box keeps no responses "
                '(`[server] responses_keep` is "0"); leave it out',
                param=name,
            )
    return False


async def earlier(wire: ResponseRequest, box: Box, owner: str) -> list[Item]:
    """Return what was said before, of the whole conversation; instructions are not part of it.

    Raises PreviousResponseNotFound, InvalidRequest, UnsupportedParameter and BodyTooLarge.
    """
    if wire.previous_response_id is None:
        return []
    if box.responses.limits.keeps_nothing:
        raise errors.UnsupportedParameter(
            "`previous_response_id` is not supported here: this box keeps no responses "
            '(`[server] responses_keep` is "0"); send the whole conversation as `input`',
            param="previous_response_id",
        )
    rows = await conversation(wire.previous_response_id, box, owner)
    unfit = next((row for row in rows if row.status not in _GOES_ON), None)
    if unfit is not None:
        status = "failed" if unfit.status == LOST else unfit.status
        raise errors.InvalidRequest(
            f"response '{unfit.id}' is {status}: only one that is complete can be gone on with",
            param="previous_response_id",
        )
    return said_in(rows)


async def conversation(last_id: str, box: Box, owner: str) -> list[Row]:
    """Return the responses of a conversation, at most as long as a request may be."""
    return await box.responses.chain(last_id, owner, box.plan.config.server.max_body_bytes)


def said_in(rows: list[Row]) -> list[Item]:
    """Return the items of a conversation, those of both sides."""
    return [item for row in rows for item in (*decoded(row.input), *output_of(row))]


async def resolved(wire: ResponseRequest, store: Responses, owner: str) -> list[Item]:
    """Return the request's own items, references replaced by what they refer to.

    Raises ItemNotFound for a reference to nothing that is stored.
    """
    items = list(given(wire.input))
    for i, item in enumerate(items):
        if isinstance(item, ItemReference):
            items[i] = await _find(item.id, i, store, owner)
    return items


async def _find(item_id: str, index: int, store: Responses, owner: str) -> Item:
    row = await store.item(item_id, owner)
    if row is not None:
        for item in (*output_of(row), *decoded(row.input)):
            if getattr(item, "id", None) == item_id:
                return item
    raise errors.ItemNotFound(
        f"item with id '{item_id[:100]}' not found; items are kept with responses that have "
        "`store: true`",
        param=f"input[{index}].id",
    )


# ── rows ──

LOST = "lost"  # what the store calls a response whose daemon died


class _Said(msgspec.Struct):
    output: msgspec.Raw
    background: bool = False


def is_background(row: Row) -> bool:
    """Return whether the response ran, or was to run, by itself."""
    return msgspec.json.decode(row.body, type=_Said).background


def output_of(row: Row) -> list[Item]:
    """Return what the model said in a stored response."""
    return decoded(bytes(msgspec.json.decode(row.body, type=_Said).output))


def body_of(row: Row) -> bytes:
    """Return the response object of a row."""
    if row.status != LOST:
        return row.body
    found: dict[str, Any] = msgspec.json.decode(row.body)
    error = errors.InternalError("edged ended before the response was complete")
    return encode(found | {"status": "failed", "error": Problem.of(error)})


class Record:
    """What is stored of one response. `items`: its own input; ids that are new find them again."""

    def __init__(self, reply: ResponseReply, items: list[Item], owner: str) -> None:
        self.reply = reply
        self.owner = owner
        self._items = [kept(item) for item in items]
        self._new = [
            str(full.id)
            for item, full in zip(items, self._items, strict=True)
            if not isinstance(full, ItemReference) and full.id != getattr(item, "id", None)
        ]

    def row(self, events: list[bytes] | None = None) -> Row:
        """Return it as it stands; `events` of a stream that may be asked for again."""
        response = self.reply.response
        return Row(
            id=response.id,
            owner=self.owner,
            previous_id=response.previous_response_id,
            status=response.status,
            body=encode(response),
            input=encoded(self._items),
            events=None if events is None else zlib.compress(b"".join(events)),
            item_ids=(*self._new, *(item.id for item in response.output)),
        )


class Stored:
    """ASGI application: an answer that is stored before the client has seen the end of it.

    An answer that fails before it began, or that the client does not wait for, is not stored.
    """

    def __init__(self, answer: Answer, record: Record | None, store: Responses) -> None:
        self._answer = answer
        self._record = record
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request of this scope."""

        async def storing(message: Message) -> None:
            is_last = message["type"] == "http.response.body" and not message["more_body"]
            if is_last and self._record is not None and self._record.reply.begun:
                await self._store.put(self._record.row())
            await send(message)

        with own_names():
            await self._answer(scope, receive, storing)
