"""The text state of one generation: bytes of tokens in, pieces of the answer out.

Reasoning, content and calls are told apart by the rows of `formats.py`. Nothing leaks across: text
that could still become a tag or a stop string is held back until it is decided, then it is a tag,
or the text that it was. Stop strings are looked for in the content only: reasoning must not be cut
by a stop meant for the answer. What was meant to be a call and is none is content.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from edged.protocol import CallDelta, ToolChoice
from edged.worker.output import harmony
from edged.worker.output.calls import Calls
from edged.worker.output.content import Content
from edged.worker.output.pieces import Pieces
from edged.worker.output.source import Reading, Source
from edged.worker.output.syntax import (
    Format,
    Harmony,
    Marker,
    Named,
    Objects,
    Parameters,
    Pythonic,
    Syntax,
    Trigger,
)

_LONG = 1 << 40
_SPACES = 4096  # a longer run is text, whatever follows


class Piece(Struct, frozen=True):
    """What one token, or the end, has set free.

    `stopped`: nothing more comes, because of the stop string `stop` or after the only call.
    """

    content: str = ""
    reasoning: str = ""
    calls: Sequence[CallDelta] = ()
    stop: str | None = None
    stopped: bool = False

    @property
    def shows(self) -> bool:
        """There is something for the client in it."""
        return bool(self.content or self.reasoning or self.calls)


NOTHING = Piece()


class Output:
    """What one generation says. Without `form` it is plain text, as of a completion."""

    def __init__(
        self,
        stop: Sequence[str] = (),
        *,
        form: Format | None = None,
        prompt: str = "",
        continued: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        choice: ToolChoice | None = None,
    ) -> None:
        """`prompt` is the rendered one: it may have opened the reasoning, or a call.

        `continued`: it ends inside the answer. `tools` are OpenAI's.
        """
        choice = choice or ToolChoice()
        tools = tools if choice.mode != "none" else None
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._source = Source()
        self._deltas: list[CallDelta] = []
        self._thoughts: list[str] = []
        self._thought_spaces = ""
        self._inside = False
        self._cut = False
        self._over = False
        self._plain = form is None  # what comes is content as it stands, unless `_special` is in it
        self._given = ""  # of the prompt, read as if it were the answer's
        self._content = Content(stop, calls=bool(form and tools))
        self._calls: Calls | None = None
        openings: dict[str, list[Syntax]] = {}
        if form is not None and tools:
            pieces = Pieces(
                self._source, self._emit, parallel=choice.parallel, id_length=form.id_length
            )
            self._calls = Calls(self._source, tools, choice, pieces)
            openings = _openings(form)
        self._openings = openings
        self._around = form.around if form else ("", "")
        self._wrapped = False  # the content began with the first of these
        dropped = {*form.dropped, self._around[1]} if form else set()
        self._tags = sorted({*openings, *dropped} - {""}, key=len)[::-1]
        self._tag = re.compile("|".join(map(re.escape, self._tags)) or r"(?!)")
        first = "".join({tag[0] for tag in self._tags}) + self._content.first
        self._special = re.compile(f"[{re.escape(first)}]" if first else r"(?!)")
        self._channels: harmony.Channels | None = None
        if form is not None and isinstance(form.calls[0], Harmony):
            self._plain = False
            self._channels = harmony.Channels(
                self._source, self._calls, say=self._say, think=self._think, lost=self._lost
            )
        self._reading = self._read(form, prompt, continued=continued)
        next(self._reading)  # up to where it needs text

    @property
    def reasoning(self) -> bool:
        """The next text belongs to the reasoning."""
        return self._inside or (self._channels is not None and self._channels.thinking)

    @property
    def called(self) -> bool:
        """A tool was called."""
        return self._calls is not None and self._calls.pieces.called

    @property
    def triggered(self) -> tuple[Trigger, str] | None:
        """The beginning of a call that was just written, and the text that came after it.

        From here on the answer can be constrained with `lark_after_trigger`; tell it by `enforce`.
        """
        if self._calls is None or self._calls.pieces.trigger is None or self._calls.pieces.enforced:
            return None
        return self._calls.pieces.trigger, self._source.since_trigger()

    def enforce(self) -> None:
        """Trust that what follows is a call and whole: a grammar sees to it. Arguments stream."""
        if self._calls is not None:
            self._calls.pieces.enforced = True

    def feed(self, data: bytes) -> Piece:
        """Take the bytes of a token and return what may be shown now."""
        text = self._utf8.decode(data)
        if not text or self._over:
            return NOTHING
        if (
            self._plain
            and self._source.empty
            and self._content.settled
            and not self._special.search(text)
            and (self._calls is None or not text[-1].isspace())
        ):
            return Piece(content=text)
        self._source.feed(text)
        return self._advance()

    def finish(self, *, cut: bool = False) -> Piece:
        """Return what was held back, as no more text comes.

        `cut`: the answer did not end by itself. A call that it was in is handed out as far as it
        is JSON; otherwise it is no call, but text.
        """
        if self._over:
            return NOTHING
        self._cut = cut
        if not cut:  # half a character is nobody's fault then, and nothing to show
            self._source.feed(self._utf8.decode(b"", final=True))
        self._source.ended = True
        return self._advance()

    # ── one step ──

    def _advance(self) -> Piece:
        try:
            next(self._reading)
        except StopIteration:
            self._over = True
            if self._content.met is None:
                self._content.finish()
        if self._content.met is not None:
            self._over = True
        content = self._content.drain()
        reasoning = "".join(self._thoughts)
        self._thoughts.clear()
        calls, self._deltas = self._deltas, []
        stopped = self._over and not self._source.ended
        if not (content or reasoning or calls or stopped):
            return NOTHING
        return Piece(content, reasoning, calls, self._content.met, stopped)

    def _say(self, text: str) -> None:
        if self._given and text:
            text, self._given = text.removeprefix(self._given), ""
        self._content.say(text)

    def _think(self, text: str) -> None:
        """Take reasoning; white space at its end is no part of it."""
        text = self._thought_spaces + text
        shown = text.rstrip() if len(text) < _SPACES or not text.isspace() else text
        self._thought_spaces = text[len(shown) :]
        if shown:
            self._thoughts.append(shown)

    def _emit(self, delta: CallDelta) -> None:
        self._content.before_call()
        self._given = ""
        self._deltas.append(delta)

    # ── readers ──

    def _read(self, form: Format | None, prompt: str, *, continued: bool) -> Reading[None]:
        if form is not None and form.given and prompt.endswith(form.given):
            self._given = form.given
            self._source.feed(form.given)
        if form is not None and self._channels is not None:
            yield from self._channels.read(harmony.channel_of(prompt))
            return
        if form is not None:
            marker = _opened(form, prompt, continued=continued)
            if marker is not None:
                begins = prompt.rstrip().endswith(marker.opening.strip())
                yield from self._read_reasoning(marker, begins=begins)
            elif not continued:
                yield from self._read_start(form, prompt)
        yield from self._read_content()

    def _read_start(self, form: Format, prompt: str) -> Reading[None]:
        """Find out whether the answer starts with reasoning, or with a call without a tag."""
        source = self._source
        if form.given and prompt.endswith(form.given):
            return  # in the middle of a tag
        source.mark()
        yield from source.spaces()
        for marker in form.markers:
            if (yield from source.tag(marker.opening)):
                source.unmark()
                yield from self._read_reasoning(marker)
                return
        for marker in form.markers:  # closing what was never opened
            if (yield from source.tag(marker.closing)):
                source.unmark()
                yield from source.spaces()
                break
        else:
            self._say(source.unmark())

    def _read_reasoning(self, marker: Marker, *, begins: bool = True) -> Reading[None]:
        source = self._source
        self._inside = True
        if begins:
            yield from source.spaces()
        # Without tools the beginning of a call ends nothing.
        stops = (marker.closing, *(end for end in marker.ends if self._tag.match(end)))
        _, stop = yield from source.until(stops, limit=_LONG, sink=self._think)
        self._inside = False
        if stop in marker.ends:
            source.back(len(stop))
        elif stop:
            yield from source.spaces()
        elif self._thought_spaces:
            self._thoughts.append(self._thought_spaces)

    def _read_content(self) -> Reading[None]:
        source = self._source
        yield from self._skip_around()
        if bare := self._openings.get(""):
            source.mark()
            if (yield from source.spaces()) == "{":
                if (yield from self._read_call(bare, "")):
                    return
            else:
                self._say(source.unmark())
        self._plain = True
        while self._content.met is None:
            tag, known = yield from self._next_tag()
            if not known:
                return
            if tag in self._openings:
                source.mark()
                source.take(len(tag))
                source.mark_trigger()
                self._plain = False
                if (yield from self._read_call(self._openings[tag], tag)):
                    return
                self._plain = True
            elif tag == self._around[1]:
                source.mark()
                source.take(len(tag))
                self._plain = False
                following = yield from source.spaces()
                self._plain = True
                text = source.unmark()
                self._say(text if following or not self._wrapped else "")
            else:
                source.take(len(tag))

    def _skip_around(self) -> Reading[None]:
        """Skip the tag that opens the whole content, if there is one."""
        if not self._around[0]:
            return
        source = self._source
        source.mark()
        yield from source.spaces()
        self._wrapped = yield from source.tag(self._around[0])
        text = source.unmark()
        if self._wrapped:
            yield from source.spaces()
        else:
            self._say(text)

    def _next_tag(self) -> Reading[tuple[str, bool]]:
        """Say content up to a tag that is there in full, and return it; False at the end."""
        source = self._source
        while True:
            match = self._tag.search(source.text, source.at)
            if match is not None:
                self._say(source.take(match.start() - source.at))
                longer = source.left < len(self._tags[0]) and any(
                    len(tag) > source.left and tag.startswith(source.text[source.at :])
                    for tag in self._tags
                )
                if not (longer and (yield from source.more())):
                    return match[0], True
                continue
            keep = 0 if source.ended else source.overlap(self._tags)
            self._say(source.take(source.left - keep))
            if not (yield from source.more()) and source.empty:
                return "", False

    def _read_call(self, syntaxes: Sequence[Syntax], opening: str) -> Reading[bool]:
        """Read calls after the mark; True if no more may come."""
        assert self._calls is not None
        if (yield from self._calls.read(syntaxes, opening)):
            self._source.unmark()
            self._content.after_call()
            return self._calls.pieces.full
        self._lost()
        return False

    def _lost(self) -> None:
        """What was read since the mark is no call: say it, unless it is one that was cut off."""
        text = self._source.unmark()
        if self._calls is not None:
            if self._cut and self._source.ended and self._calls.pieces.cut():
                return
            self._calls.pieces.abandon()
        self._say(text)


def _openings(form: Format) -> dict[str, list[Syntax]]:
    """Return the syntaxes by the texts that open a call in them."""
    found: dict[str, list[Syntax]] = {}
    for syntax in form.calls:
        match syntax:
            case Objects(opening=opening) | Pythonic(opening=opening):
                texts = {opening}
            case Named(opening=opening, call=call):
                texts = {opening, call} - {""}
            case Parameters(opening=opening, function=function):
                texts = {opening, function} - {""}
            case Harmony():
                texts = set()
        for text in texts:
            found.setdefault(text, []).append(syntax)
    return found


def _opened(form: Format, prompt: str, *, continued: bool) -> Marker | None:
    """Return the marker that the prompt has opened for the answer to go on in."""
    end = prompt.rstrip()
    for marker in form.markers:
        at = end.rfind(marker.opening.strip())
        if at >= 0 and end.endswith(marker.opening.strip()):
            return marker
        if continued and at > end.rfind(marker.closing):
            return marker
    return None
