"""What every dialect shares: run `Generate`s and answer with their events, whole or streamed.

One task for each generation pulls its events, one waits for the client to leave, and the request's
own task writes. They meet in one `asyncio.Event`, so that all events which arrive together leave in
one send.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Protocol, Self

from litestar.types import Receive, Scope, Send
from msgspec import Struct

from edged import errors
from edged.api import arrival
from edged.api import error as api_error
from edged.api.box import Box
from edged.api.exchange import Exchange
from edged.errors import EdgedError
from edged.log import get_logger
from edged.protocol import Chosen, Delta, Event, Failed, Finish, Generate, Started, Timings, Usage
from edged.wake import Wake

PING_S = 10.0  # a stream on which nothing flows gets a comment this often
STALLED_CLIENT_S = 120.0  # a client that takes no bytes for this long is cut off
_ABORT_LIMIT_S = 10.0

_PING = b": ping\n\n"
_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ToolCall(Struct):
    """One whole call. `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class Choice(Struct):
    """All that one generation said."""

    content: str
    reasoning: str
    calls: list[ToolCall]
    logprobs: list[Chosen]
    finish: Finish

    @classmethod
    def of(cls, deltas: Sequence[Delta], finish: Finish) -> Self:
        """Join the pieces of one generation."""
        calls: dict[int, ToolCall] = {}
        for piece in (call for delta in deltas for call in delta.calls):
            if piece.index not in calls:
                calls[piece.index] = ToolCall(piece.id, piece.name, "")
            calls[piece.index].arguments += piece.arguments
        return cls(
            "".join([delta.content for delta in deltas]),
            "".join([delta.reasoning for delta in deltas]),
            list(calls.values()),
            [each for delta in deltas for each in delta.logprobs],
            finish,
        )


class Reply(Protocol):
    """The dialect's half: how events look on the wire. `index` is a generation's number."""

    def whole(self, choices: list[Choice]) -> bytes:
        """Return the body of the reply that is not streamed."""
        ...

    def opening(self, prompt_tokens: int) -> bytes:
        """Return what a stream starts with, once; `prompt_tokens` of the first generation."""
        ...

    def piece(self, index: int, delta: Delta) -> bytes:
        """Return the wire form of one delta."""
        ...

    def closing(self, index: int, finish: Finish) -> bytes:
        """Return what tells the end of one generation."""
        ...

    def ending(self, finishes: list[Finish]) -> bytes:
        """Return what a stream ends with, after the last closing."""
        ...

    def error(self, error: EdgedError) -> bytes:
        """Return what a stream ends with after an error."""
        ...


def total(finishes: Sequence[Finish], n: int) -> Finish:
    """Return the sum of what one HTTP request cost: `n` generations for each of its prompts.

    A prompt counts once, however many answers it got.
    """
    usages = [finish.usage for finish in finishes]
    timings = [finish.timings for finish in finishes]
    return Finish(
        finishes[0].id,
        finishes[-1].reason,
        Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in usages[::n]),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            cached_tokens=sum(usage.cached_tokens for usage in usages[::n]),
            reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
        ),
        Timings(
            queue_ms=max(each.queue_ms for each in timings),
            prefill_ms=max(each.prefill_ms for each in timings),
            decode_ms=max(each.decode_ms for each in timings),
        ),
    )


class Answer:
    """ASGI application that answers one request from the events of its generations.

    `requests`: `n` for each prompt, one prompt after the other.

    Raises EdgedError while nothing was sent, so that errors have their proper HTTP status.
    A client that leaves closes the generator, which aborts the generation.
    """

    def __init__(
        self,
        box: Box,
        model: str,
        requests: Sequence[Generate],
        reply: Reply,
        *,
        stream: bool,
        n: int = 1,
    ) -> None:
        self._box = box
        self._model = model
        self._requests = requests
        self._n = n
        self._reply = reply
        self._stream = stream
        self._arrived: list[tuple[int, Delta | Finish]] = []  # not yet written
        self._finishes: dict[int, Finish] = {}
        self._finish: Finish | None = None  # of all together
        self._error: EdgedError | None = None
        self._started = False
        self._gone = False
        self._begun = False  # the opening was written
        self._ping_due = False
        self._ping_timer: asyncio.TimerHandle | None = None
        self._sent_s = time.perf_counter()
        self._sending_s: float | None = None  # since when a piece waits for the client
        self._n_prompts: dict[int, int] = {}  # tokens of each prompt
        self._n_completion = 0
        self._last_s: dict[int, float] = {}
        self._gap = box.metrics.gaps(model)
        self._wake = Wake()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request of this scope."""
        self._exchange = Exchange.of(scope)
        pumps = [asyncio.create_task(self._pull(i)) for i in range(len(self._requests))]
        watch = asyncio.create_task(self._watch(receive))
        try:
            if self._stream:
                await self._write_stream(send)
            else:
                await self._write_whole(send)
        finally:
            await self._end(pumps, watch)
            self._record()

    # ── beside the request's own task ──

    async def _pull(self, index: int) -> None:
        try:
            if self._stream:
                await arrival.wait_for_files(self._box, self._model)
            async with contextlib.aclosing(
                self._box.generate(self._model, self._requests[index])
            ) as events:
                async for event in events:
                    self._take(index, event)
                    if self._stream or self._finish:
                        self._wake.set()
            if index not in self._finishes and self._error is None:
                self._error = errors.InternalError("the answer ended without its last event")
        except EdgedError as error:
            self._error = self._error or error
        except Exception as error:  # noqa: BLE001 - the client's 500, its traceback is logged
            self._error = self._unexpected(error)
        self._wake.set()

    def _unexpected(self, error: Exception) -> EdgedError:
        get_logger().error("request.failed", request_id=self._exchange.id, exc_info=error)
        return api_error.known(error)

    async def _watch(self, receive: Receive) -> None:
        await disconnected(receive)
        self._gone = True
        self._wake.set()

    # ── writing ──

    async def _write_whole(self, send: Send) -> None:
        while self._finish is None and not self._gone:
            await self._wake.wait()
            if self._error:
                raise self._error
        if self._finish is None:
            return
        pieces: list[list[Delta]] = [[] for _ in self._requests]
        for index, event in self._arrived:
            if isinstance(event, Delta):
                pieces[index].append(event)
        choices = [Choice.of(deltas, self._finishes[i]) for i, deltas in enumerate(pieces)]
        await send_json(send, self._reply.whole(choices))

    async def _write_stream(self, send: Send) -> None:
        try:
            async with asyncio.timeout(None) as self._limit:
                self._ping()
                await self._write_pieces(send)
        except TimeoutError:  # the server closes a connection whose response is not complete
            self._error = errors.ClientTooSlow("the client takes no bytes")
        finally:
            if self._ping_timer:
                self._ping_timer.cancel()

    async def _write_pieces(self, send: Send) -> None:
        opened = ended = False
        while not (ended or self._gone):
            await self._wake.wait()
            if self._error and not opened:
                raise self._error
            ended = bool(self._finish or self._error)
            body = self._next_bytes()
            if not body:
                continue
            if not opened:
                opened = True
                await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})
            self._sending_s = time.perf_counter()
            await send({"type": "http.response.body", "body": body, "more_body": not ended})
            self._sent_s, self._sending_s = time.perf_counter(), None

    def _next_bytes(self) -> bytes:
        """Return everything that came since the last call, in its wire form."""
        parts: list[bytes] = []
        if self._started and not self._begun:
            self._begun = True
            parts.append(self._reply.opening(next(iter(self._n_prompts.values()), 0)))
        arrived, self._arrived = self._arrived, []
        for index, event in arrived:
            if isinstance(event, Delta):
                parts.append(self._reply.piece(index, event))
            else:
                parts.append(self._reply.closing(index, event))
        if self._finish:
            parts.append(self._reply.ending([self._finishes[i] for i in sorted(self._finishes)]))
        elif self._error:
            parts.append(self._reply.error(self._error))
        elif self._ping_due and not parts:
            parts.append(self._comment())
        self._ping_due = False
        return b"".join(parts)

    def _comment(self) -> bytes:
        fetch = self._box.fetching(self._model)
        return _PING if fetch is None else f": fetching, {arrival.said(fetch)}\n\n".encode()

    def _ping(self) -> None:
        """Ask for a comment line when nothing was sent for PING_S; runs as a timer of the loop.

        It looks after clients that take no bytes as well: a timer for each piece costs a tenth of
        all that a stream costs.
        """
        now_s = time.perf_counter()
        if self._sending_s is not None and now_s - self._sending_s >= STALLED_CLIENT_S:
            self._limit.reschedule(asyncio.get_running_loop().time())
            return
        idle_s = now_s - self._sent_s
        if idle_s >= PING_S:
            self._ping_due = True
            self._wake.set()
            idle_s = 0.0
        self._ping_timer = asyncio.get_running_loop().call_later(PING_S - idle_s, self._ping)

    # ── bookkeeping ──

    def _take(self, index: int, event: Event) -> None:
        if isinstance(event, Delta):
            now_s = time.perf_counter()
            if index in self._last_s:
                self._gap.observe(now_s - self._last_s[index])
            elif not self._last_s:
                self._exchange.ttft_s = self._exchange.elapsed_s()
                self._box.metrics.first_token(self._model, self._exchange.ttft_s)
            self._last_s[index] = now_s
            self._n_completion += event.n_tokens
            self._arrived.append((index, event))
        elif isinstance(event, Started):
            self._n_prompts[index] = event.prompt_tokens
        elif isinstance(event, Finish):
            self._finishes[index] = event
            self._arrived.append((index, event))
            if len(self._finishes) == len(self._requests):
                finishes = [self._finishes[i] for i in range(len(self._requests))]
                self._finish = total(finishes, self._n)
        elif isinstance(event, Failed):
            self._error = errors.from_code(event.code, event.message, event.param)
        self._started = True

    async def _end(self, pumps: list[asyncio.Task[None]], watch: asyncio.Task[None]) -> None:
        """Stop the request's tasks; a generation that did not end by itself is aborted."""
        watch.cancel()
        if not self._finish:
            for pump in pumps:
                pump.cancel()
        _, stuck = await asyncio.wait((*pumps, watch), timeout=_ABORT_LIMIT_S)
        for task in stuck:
            task.cancel()
        if stuck:
            get_logger().error("request.stuck", request_id=self._exchange.id, model=self._model)

    def _record(self) -> None:
        exchange = self._exchange
        if self._finish:
            usage = self._finish.usage
            exchange.finish = self._finish.reason
        else:
            n_prompt = sum(
                self._n_prompts.get(i, 0) for i in range(0, len(self._requests), self._n)
            )
            usage = Usage(prompt_tokens=n_prompt, completion_tokens=self._n_completion)
            cut_off = errors.ClientGone if self._gone else errors.ShuttingDown
            exchange.finish = exchange.error = (self._error or cut_off).code
        if self._started:
            exchange.prompt_tokens = usage.prompt_tokens
            exchange.completion_tokens = usage.completion_tokens
            exchange.cached_tokens = usage.cached_tokens
            self._box.metrics.usage(self._model, usage)
            self._box.access.charge(exchange, usage.prompt_tokens + usage.completion_tokens)


async def disconnected(receive: Receive) -> None:
    """Return once the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_json(send: Send, body: bytes) -> None:
    """Send `body` as a whole JSON response."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})
