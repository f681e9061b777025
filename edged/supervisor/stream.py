"""The events of one request that its reader has not taken yet, in bounded memory."""

from __future__ import annotations

from collections import deque

from edged import errors
from edged.protocol import LAST, Delta, Event, Failed
from edged.wake import Wake


class Stream:
    """One request's events, from `put` by the worker's connection to `next` by the reader.

    A slow reader costs bounded memory: pieces of text are joined while it is behind, and a reader
    that is `_MAX_UNREAD_CHARS` behind loses the request instead of the box its memory.
    """

    _JOIN_FROM_EVENTS = 32
    _JOIN_TO_CHARS = 4096
    _MAX_UNREAD_CHARS = 4 << 20
    _EVENT_COST_CHARS = 64

    def __init__(self, number: int) -> None:
        self.id = number
        self.ended = False
        self.last: Event | None = None
        self._events: deque[Event] = deque()
        self._unread_chars = 0
        self._arrived = Wake()

    def put(self, event: Event) -> None:
        """Take an event for the reader; after the last one of a request nothing is taken."""
        if self.ended:
            return
        if isinstance(event, Delta):
            size = _size(event)
            if self._join(event, size):
                return
            self._unread_chars += size + self._EVENT_COST_CHARS
            if self._unread_chars > self._MAX_UNREAD_CHARS:
                event = Failed(
                    self.id,
                    errors.ServiceUnavailable.code,
                    "the client reads too slowly: the answer was cut off",
                )
        self.ended = type(event) in LAST
        self.last = event
        self._events.append(event)
        self._arrived.set()

    def _join(self, event: Delta, size: int) -> bool:
        last = self._events[-1] if len(self._events) >= self._JOIN_FROM_EVENTS else None
        if not isinstance(last, Delta):
            return False
        if size + _size(last) > self._JOIN_TO_CHARS:
            return False
        if (event.reasoning and last.content) or (event.content and last.calls):
            return False  # the order of thinking, answer and calls stays as it was
        self._unread_chars += size
        self._events[-1] = Delta(
            last.id,
            last.content + event.content,
            last.reasoning + event.reasoning,
            [*last.calls, *event.calls],
            [*last.logprobs, *event.logprobs],
            last.n_tokens + event.n_tokens,
        )
        return True

    async def next(self) -> Event:
        """Wait for the next event; liveness of the worker bounds this wait."""
        while not self._events:
            await self._arrived.wait()
        event = self._events.popleft()
        if isinstance(event, Delta):
            self._unread_chars = max(0, self._unread_chars - _size(event) - self._EVENT_COST_CHARS)
        return event


_CALL_COST_CHARS = 64
_LIKELIHOOD_COST_CHARS = 128


def _size(delta: Delta) -> int:
    """Return about how many characters of memory a piece takes."""
    if not (delta.calls or delta.logprobs):  # nearly always; the sums cost a tenth of a stream
        return len(delta.content) + len(delta.reasoning)
    calls = sum(_CALL_COST_CHARS + len(call.arguments) for call in delta.calls)
    likelihoods = sum(_LIKELIHOOD_COST_CHARS * (1 + len(each.top)) for each in delta.logprobs)
    return len(delta.content) + len(delta.reasoning) + calls + likelihoods
