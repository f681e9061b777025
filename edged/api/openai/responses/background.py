"""Responses that run without a client: tasks of the daemon that end in the store."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import zlib
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from litestar import Litestar
from litestar.types import Message, Receive, Scope, Send

from edged import errors
from edged.api import error as api_error
from edged.api.events import PING_S, STALLED_CLIENT_S, Answer, disconnected
from edged.api.exchange import Exchange
from edged.api.openai.responses.request import own_names
from edged.api.openai.responses.state import Record
from edged.errors import EdgedError
from edged.log import get_logger
from edged.store.responses import Responses

log = get_logger()

_CANCEL_S = 15.0  # an abort may take a long decode
_END_S = 40.0  # the supervisor lets open answers finish, then aborts them
_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
_EVENT_END = b"\n\n"


class Events:
    """The events of a stream, kept from its beginning, for any number of readers."""

    def __init__(self, past: list[bytes] | None = None) -> None:
        self.past: list[bytes] = past or []  # one element is one event
        self.ended = past is not None
        self._changed = asyncio.Event()

    @classmethod
    def stored(cls, compressed: bytes) -> Events:
        """Return the events of a stream that has ended."""
        return cls(_split(zlib.decompress(compressed)))

    def add(self, body: bytes) -> None:
        """Take a piece of the stream, whole events."""
        self.past += _split(body)
        self._wake()

    def end(self) -> None:
        """Let the readers go."""
        self.ended = True
        self._wake()

    def more(self) -> Coroutine[Any, Any, Any]:
        """Return what waits until something more is there than at the time of this call."""
        return self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _split(body: bytes) -> list[bytes]:
    found = (each + _EVENT_END for each in body.split(_EVENT_END) if each)
    return [event for event in found if not event.startswith(b":")]  # comments are for now only


class Follow:
    """ASGI application: the events after number `after`, and those to come."""

    def __init__(self, events: Events, after: int = -1) -> None:
        self._events = events
        self._next = after + 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request of this scope. The client may leave; the response goes on."""
        watch = asyncio.create_task(disconnected(receive))
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        try:
            ended = False
            while not ended and not watch.done():
                ended = self._events.ended
                body = b"".join(self._events.past[self._next :])
                self._next = max(self._next, len(self._events.past))
                if body or ended:
                    async with asyncio.timeout(STALLED_CLIENT_S):
                        await send(
                            {"type": "http.response.body", "body": body, "more_body": not ended}
                        )
                    continue
                news = asyncio.create_task(self._events.more())
                await asyncio.wait(
                    {news, watch}, timeout=PING_S, return_when=asyncio.FIRST_COMPLETED
                )
                if not news.done():
                    news.cancel()
                    if not watch.done():
                        await send(
                            {"type": "http.response.body", "body": b": ping\n\n", "more_body": True}
                        )
        except TimeoutError:  # takes no bytes: the server closes what is not complete
            Exchange.of(scope).error = errors.ClientTooSlow.code
        finally:
            watch.cancel()


class Running:
    """One response that runs by itself. Its own task writes; `cancel` may be called by anybody."""

    def __init__(
        self, answer: Answer, record: Record, store: Responses, *, model: str, streamed: bool
    ) -> None:
        self.record = record
        self.model = model
        self.events = Events() if streamed else None
        self._answer = answer
        self._store = store
        self._stored = False
        self._unwanted = asyncio.Event()

    async def announce(self) -> bytes:
        """Store the response before it runs, and return it; raises ServiceUnavailable."""
        self.record.reply.response.status = "queued"
        row = self.record.row()
        if not await self._store.put(row):
            raise errors.ServiceUnavailable(
                "the response cannot be stored now, so it cannot run in the background; "
                "see the daemon's log"
            )
        return row.body

    async def run(self, exchange: Exchange) -> None:
        """Answer to the end, whatever it is, and store it."""
        reply = self.record.reply
        try:
            with own_names():
                await self._answer(_scope_of(exchange), self._receive, self._send)
        except EdgedError as error:
            await self._take(reply.error(error), is_last=True)
        except Exception as error:
            log.exception("request.failed", request_id=exchange.id)
            await self._take(reply.error(api_error.known(error)), is_last=True)
        finally:
            if not reply.ended:  # nobody wants it, or the daemon ends at once
                reply.cancelled()
            if not self._stored:
                await self._take(b"", is_last=True)
            if self.events:
                self.events.end()
            _log(exchange, reply.response.id, reply.response.status)

    def cancel(self) -> None:
        """Let the generation be aborted; the task ends soon after."""
        self._unwanted.set()

    async def _receive(self) -> Any:
        await self._unwanted.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            await self._take(message["body"], is_last=not message["more_body"])

    async def _take(self, body: bytes, *, is_last: bool) -> None:
        """Keep a piece of the stream; nobody reads the last one before the end is stored."""
        if is_last:
            self._stored = True
            past = [*self.events.past, body] if self.events else None
            await self._store.put(self.record.row(past))
        if self.events:
            self.events.add(body)


def _scope_of(exchange: Exchange) -> Any:
    return {"type": "http", "state": {"exchange": exchange}}


def _log(exchange: Exchange, response_id: str, status: str) -> None:
    facts = {
        "model": exchange.model,
        "ttft_ms": None if exchange.ttft_s is None else round(exchange.ttft_s * 1000, 1),
        "prompt_tokens": exchange.prompt_tokens,
        "completion_tokens": exchange.completion_tokens,
        "cached": exchange.cached_tokens,
        "finish": exchange.finish,
        "error": exchange.error,
        "request_id": exchange.id,
    }
    said = {name: value for name, value in facts.items() if value is not None}
    ms = round(exchange.elapsed_s() * 1000, 1)
    log.info("response.done", response=response_id, status=status, ms=ms, **said)


class Background:
    """All responses that run by themselves, by id. Lives as long as the app."""

    def __init__(self) -> None:
        self._running: dict[str, Running] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @staticmethod
    def of(app: Litestar) -> Background:
        """Return the app's one."""
        if "background" not in app.state:
            app.state["background"] = Background()
        background: Background = app.state["background"]
        return background

    async def begin(self, running: Running, exchange: Exchange, most: int) -> bytes:
        """Let it run, and return the response as it is now.

        It gets an exchange of its own: the request that asked ends at once. Raises QueueFull when
        the model has `most` of them already, ServiceUnavailable when it cannot be stored.
        """
        if Counter(each.model for each in self._running.values())[running.model] >= most:
            raise errors.QueueFull(
                f"{most} background responses of `{running.model}` wait or run already; "
                "try again later",
                retry_after_s=5,
            )
        response = running.record.reply.response
        self._running[response.id] = running  # before the wait, so that all count
        try:
            body = await running.announce()
        except BaseException:
            del self._running[response.id]
            raise
        own = dataclasses.replace(exchange, started_s=time.perf_counter())
        task = asyncio.create_task(running.run(own), name=f"background {response.id}")
        self._tasks[response.id] = task
        task.add_done_callback(lambda _: self._forget(response.id))
        return body

    def find(self, response_id: str, owner: str) -> Running | None:
        """Return the response of this owner, if it still runs."""
        running = self._running.get(response_id)
        return running if running is not None and running.record.owner == owner else None

    async def cancel(self, response_id: str) -> None:
        """End a response that runs; when this returns it is stored."""
        running, task = self._running[response_id], self._tasks[response_id]
        running.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_S)
        if not task.done():
            log.error("response.stuck", response=response_id, model=running.model)

    async def close(self) -> None:
        """Wait for all: the supervisor lets them finish, and aborts those that do not."""
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=_END_S)
        for task in list(self._tasks.values()):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _forget(self, response_id: str) -> None:
        del self._running[response_id]
        del self._tasks[response_id]


async def close(app: Litestar) -> None:
    """End what `Background.of` began."""
    if "background" in app.state:
        await Background.of(app).close()
