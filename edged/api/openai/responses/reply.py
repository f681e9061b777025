"""Events → the response object, and the stream that tells how it came to be.

One writer for both: a whole reply is the object that the stream would have ended with.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec
from msgspec import Struct

from edged.api.events import Choice
from edged.api.openai.envelope import encode
from edged.api.openai.responses.items import new_id, seal
from edged.api.openai.responses.shape import (
    FunctionCall,
    Incomplete,
    Logprob,
    Message,
    OutputItem,
    OutputText,
    Problem,
    Reasoning,
    ReasoningText,
    Response,
    ToldLogprob,
    Usage,
    logprobs_of,
)
from edged.api.openai.usage import Timings
from edged.errors import EdgedError
from edged.protocol import CallDelta, Delta, Finish

ItemStatus = Literal["in_progress", "completed", "incomplete"]

_TEXT = "response.output_text"
_THOUGHT = "response.reasoning_text"
_ARGUMENTS = "response.function_call_arguments"


class _Open:
    """The output item that is being said: one kind, one content part at most."""

    def __init__(self, kind: str, prefix: str, index: int, call: CallDelta | None = None) -> None:
        self.kind = kind  # the stem of its events
        self.id = new_id(prefix)
        self.index = index  # of the item in the output
        self.call = call  # what the first piece of a call said
        self.pieces: list[str] = []
        self.logprobs: list[Logprob] = []
        self.pending: list[Logprob] = []  # of tokens whose text was not yet whole
        place = {"item_id": self.id, "output_index": index}
        if call is None:
            place["content_index"] = 0
        self.place: dict[str, Any] = place
        event = f"{kind}.delta"
        self.head = b"event: %b\ndata: %b" % (
            event.encode(),
            encode({"type": event, **place})[:-1] + b',"delta":',
        )

    def item(self, status: ItemStatus, *, sealed: bool) -> OutputItem:
        """Return the item as it stands."""
        text = "".join(self.pieces)
        if self.call is not None:
            call_id, name = self.call.id, self.call.name
            return FunctionCall(
                id=self.id, status=status, call_id=call_id, name=name, arguments=text
            )
        if self.kind == _TEXT:
            return Message(id=self.id, status=status, content=[OutputText(text, self.logprobs)])
        return Reasoning(
            id=self.id,
            status=status,
            content=[ReasoningText(text)],
            encrypted_content=seal(text) if sealed else msgspec.UNSET,
        )

    def empty(self, *, sealed: bool) -> OutputItem:
        """Return the item as it is announced: nothing is said yet."""
        found = self.item("in_progress", sealed=sealed)
        return (
            found if isinstance(found, FunctionCall) else msgspec.structs.replace(found, content=[])
        )


class ResponseReply:
    """Writes the reply to one request. `response` is the object, as far as it has come.

    `sealed`: reasoning items carry an `encrypted_content` too.
    """

    def __init__(self, response: Response, *, sealed: bool = False) -> None:
        self.response = response
        self.ended = False
        self.begun = False  # the client knows of this response, or does with what is sent next
        self._sealed = sealed
        self._number = 0  # of the next event
        self._open: _Open | None = None

    def whole(self, choices: list[Choice]) -> bytes:
        """Return the response object."""
        self.begun = True
        said = choices[0]
        calls = [
            CallDelta(i, call.id, call.name, call.arguments) for i, call in enumerate(said.calls)
        ]
        self.piece(0, Delta(0, said.content, said.reasoning, calls, said.logprobs))
        self.closing(0, said.finish)
        return encode(self.response)

    def opening(self, prompt_tokens: int) -> bytes:  # noqa: ARG002 - told at the end
        """Return the events that announce the response."""
        self.response.status = "in_progress"
        self.begun = True
        return self._state("response.created") + self._state("response.in_progress")

    def piece(self, index: int, delta: Delta) -> bytes:  # noqa: ARG002 - there is one answer only
        """Return the events of one delta."""
        parts: list[bytes] = []
        if delta.reasoning:
            parts += self._to(_THOUGHT, "rs")
            parts.append(self._delta(delta.reasoning))
        if delta.content or delta.logprobs:
            parts += self._to(_TEXT, "msg")
            parts.append(self._said(delta))
        for call in delta.calls:
            if call.name:
                parts += self._begin(_Open(_ARGUMENTS, "fc", self._next_index(), call))
            assert self._open is not None, "a call begins with its name"
            assert self._open.call is not None, "calls follow each other"
            if call.arguments:
                parts.append(self._delta(call.arguments))
        return b"".join(parts)

    def closing(self, index: int, finish: Finish) -> bytes:  # noqa: ARG002
        """Return the events that end the last item; the response is complete, or cut off."""
        cut = finish.reason == "length"
        parts: list[bytes] = []
        if self._open is None and not self.response.output:
            parts = self._to(_TEXT, "msg")  # nothing was said: that is a message too
        parts.append(self._end("incomplete" if cut else "completed"))
        self.response.usage = Usage.of(finish.usage)
        self.response.timings = Timings.of(finish)
        if cut:
            self.response.status = "incomplete"
            self.response.incomplete_details = Incomplete()
        else:
            self.response.status = "completed"
            self.response.completed_at = int(time.time())
        self.ended = True
        return b"".join(parts)

    def ending(self, finishes: list[Finish]) -> bytes:  # noqa: ARG002
        """Return the event that carries the whole response."""
        return self._state(f"response.{self.response.status}")

    def error(self, error: EdgedError) -> bytes:
        """Return what tells of the failure: of the response, or before there was one."""
        parts = self._give_up("failed")
        self.response.error = Problem.of(error)
        if self.begun:
            return parts + self._state("response.failed")
        return self._event(
            "error", {"code": error.code, "message": error.message, "param": error.param}
        )

    def cancelled(self) -> None:
        """Take note that nobody wants the rest."""
        self._give_up("cancelled")

    def now(self) -> Response:
        """Return the response with what is being said at this moment."""
        if self._open is None:
            return self.response
        item = self._open.item("in_progress", sealed=self._sealed)
        return msgspec.structs.replace(self.response, output=[*self.response.output, item])

    def _give_up(self, status: Literal["failed", "cancelled"]) -> bytes:
        parts = self._end("incomplete")
        self.response.status = status
        self.ended = True
        return parts

    # ── items ──

    def _next_index(self) -> int:
        return len(self.response.output) + (self._open is not None)

    def _to(self, kind: str, prefix: str) -> list[bytes]:
        """Return the events up to where an item of this kind is being said."""
        if self._open is not None and self._open.kind == kind:
            return []
        return self._begin(_Open(kind, prefix, self._next_index()))

    def _begin(self, item: _Open) -> list[bytes]:
        parts = [self._end("completed")]
        self._open = item
        added = {"output_index": item.index, "item": item.empty(sealed=False)}
        parts.append(self._event("response.output_item.added", added))
        if item.call is None:
            parts.append(self._event("response.content_part.added", item.place | _part(item)))
        return parts

    def _end(self, status: ItemStatus) -> bytes:
        """Return the events that end the open item, if there is one."""
        item, self._open = self._open, None
        if item is None:
            return b""
        item.logprobs += item.pending
        done: dict[str, Any] = dict(item.place)
        text = "".join(item.pieces)
        if item.call is not None:
            done["arguments"] = text
        else:
            done["text"] = text
            if item.kind == _TEXT:
                done["logprobs"] = [ToldLogprob.of(each) for each in item.logprobs]
        parts = [self._event(f"{item.kind}.done", done)]
        if item.call is None:
            parts.append(self._event("response.content_part.done", item.place | _part(item)))
        whole = item.item(status, sealed=self._sealed)
        self.response.output.append(whole)
        index = {"output_index": item.index, "item": whole}
        parts.append(self._event("response.output_item.done", index))
        return b"".join(parts)

    def _said(self, delta: Delta) -> bytes:
        assert self._open is not None
        if delta.logprobs:
            self._open.pending += logprobs_of(delta.logprobs)
        if not delta.content:
            return b""
        found, self._open.pending = self._open.pending, []
        if not found:
            return self._delta(delta.content)
        self._open.logprobs += found
        told = [ToldLogprob.of(each) for each in found]
        return self._delta(delta.content, b',"logprobs":' + encode(told))

    def _delta(self, text: str, more: bytes = b"") -> bytes:
        """Return the event of one piece; put together by hand, for a stream sends thousands."""
        item, number = self._open, self._number
        assert item is not None
        if not more and item.kind == _TEXT:
            more = b',"logprobs":[]'
        self._number += 1
        item.pieces.append(text)
        return b'%b%b%b,"sequence_number":%d}\n\n' % (item.head, encode(text), more, number)

    # ── events ──

    def _state(self, kind: str) -> bytes:
        return self._event(kind, {"response": self.response})

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        body = encode({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)


def _part(item: _Open) -> dict[str, Struct]:
    text = "".join(item.pieces)
    if item.kind == _TEXT:
        return {"part": OutputText(text, item.logprobs)}
    return {"part": ReasoningText(text)}
