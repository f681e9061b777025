"""gpt-oss: an answer is messages on channels, a call is one whose header names a recipient.

`<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…`; the
recipient (`to=functions.NAME`) stands in the role's or in the channel's header.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from edged.worker.output.calls import Calls
from edged.worker.output.source import Reading, Source
from edged.worker.output.syntax import Harmony, Trigger

MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
_HEADER = 512  # characters at most
_LONG = 1 << 40
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")
TRIGGER = " to=functions."


def channel_of(prompt: str) -> str:
    """Return the channel that the prompt has opened for the answer to go on in, "" for none."""
    _, start, header = prompt.rpartition("<|start|>assistant")
    if not start or MESSAGE not in header:
        return ""
    channels = _CHANNEL.findall(header[: header.rindex(MESSAGE)])
    return channels[-1] if channels else "final"


class Channels:
    """Reads the messages of one answer. `calls` is None where no tool may be called."""

    def __init__(
        self,
        source: Source,
        calls: Calls | None,
        *,
        say: Callable[[str], None],
        think: Callable[[str], None],
        lost: Callable[[], None],
    ) -> None:
        """`lost` gives what was read since the mark back as content, or as the call cut off."""
        self._source = source
        self._calls = calls
        self._say = say
        self._think = think
        self._lost = lost
        self.thinking = False

    def read(self, channel: str) -> Reading[None]:
        """Read to the end. `channel`: the prompt has opened it, and the answer goes on in it."""
        source = self._source
        if channel:
            yield from self._body(channel)
        while (yield from source.peek()):
            source.mark()
            header, stop = yield from self._header()
            if not stop:  # no message: text of a model that left its format
                self._lost()
                yield from self._body("final")
                continue
            recipient = _RECIPIENT.search(header)
            channels = _CHANNEL.findall(header)
            if recipient is not None and recipient[1] != "assistant":
                if (yield from self._call(recipient[1])):
                    source.unmark()
                    if self._calls and self._calls.pieces.full:
                        return
                else:
                    self._lost()
                    yield from self._body("final")
            else:
                source.unmark()
                yield from self._body(channels[-1] if channels else "final")

    def _header(self) -> Reading[tuple[str, str]]:
        """Read up to a message's text; the stop is "" where there is no header."""
        source = self._source
        yield from source.tag("<|start|>")
        yield from source.tag("assistant")
        first = yield from source.spaces()
        if first not in {"<", "t"}:
            return "", ""
        start = "<|channel|>" if first == "<" else "to="
        if not (yield from source.tag(start)):
            return "", ""
        header, stop = yield from source.until([MESSAGE], limit=_HEADER)
        return start + header, stop

    def _call(self, name: str) -> Reading[bool]:
        if self._calls is None or not self._calls.knows(name):
            return False
        self._calls.pieces.trigger = Trigger(Harmony(), TRIGGER, name)
        self._source.mark_trigger()
        if not (yield from self._calls.one(name)):
            return False
        yield from self._source.spaces()
        for end in ("<|end|>", "<|call|>"):
            yield from self._source.tag(end)
        return True

    def _body(self, channel: str) -> Reading[None]:
        self.thinking = channel == "analysis"
        sink = self._think if self.thinking else self._say
        _, stop = yield from self._source.until(_ENDS, limit=_LONG, sink=sink)
        if stop in {"<|start|>", "<|channel|>"}:
            self._source.back(len(stop))
        self.thinking = False
