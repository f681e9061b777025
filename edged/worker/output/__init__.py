"""Raw bytes of a generation to what a client may see: whole characters, reasoning, content.

Markers (`<think>`, later those of tool calls) are rows of a table. Text that could still become a
marker or a stop string is held back until it is decided, so neither is ever seen in halves. Stop
strings are looked for in the content only: reasoning must not be cut by a stop meant for the
answer.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

Kind = Literal["content", "reasoning"]


class Marker(Struct, frozen=True):
    """A pair of tags at the start of an answer; what is between them is of `kind`."""

    opening: str
    closing: str
    kind: Kind


MARKERS = (
    Marker("<think>", "</think>", "reasoning"),
    Marker("<thinking>", "</thinking>", "reasoning"),
    Marker("[THINK]", "[/THINK]", "reasoning"),
)

# Control tokens whose text is a part of the answer; all others are silent.
SHOWN_TOKENS = frozenset(
    {text for marker in MARKERS for text in (marker.opening, marker.closing)}
    | {"<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "[TOOL_CALLS]"}
)


class Piece(Struct, frozen=True):
    """What one token, or the end, has set free. `stopped`: a stop string was met."""

    content: str = ""
    reasoning: str = ""
    stopped: bool = False


NOTHING = Piece()


def opened_by(prompt: str) -> Marker | None:
    """Return the marker that the prompt itself has opened at its very end."""
    end = prompt.rstrip()
    return next((m for m in MARKERS if end.endswith(m.opening)), None)


class Output:
    """The text state of one generation. `markers` is empty for plain completions."""

    def __init__(
        self,
        stop: Sequence[str] = (),
        *,
        markers: Sequence[Marker] = MARKERS,
        opened: Marker | None = None,
    ) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = [s for s in stop if s]
        self._markers = markers
        self._inside = opened
        self._undecided = bool(markers) and opened is None  # may still start with a marker
        self._strip = opened is not None  # drop white space before the next text
        self._held = ""
        self._stopped = False

    @property
    def reasoning(self) -> bool:
        """The next text belongs to the reasoning."""
        return self._inside is not None

    def feed(self, data: bytes) -> Piece:
        """Take the bytes of a token and return what may be shown now."""
        text = self._utf8.decode(data)
        if not text or self._stopped:
            return NOTHING
        if not (self._held or self._stop or self._inside or self._undecided or self._strip):
            return Piece(content=text)
        self._held += text
        return self._advance(final=False)

    def finish(self) -> Piece:
        """Return what was held back, as no more text comes."""
        if self._stopped:
            return NOTHING
        self._held += self._utf8.decode(b"", final=True)
        return self._advance(final=True)

    def _advance(self, *, final: bool) -> Piece:
        reasoning = ""
        if self._undecided and not self._decide(final=final):
            return NOTHING
        if self._inside is not None:
            reasoning = self._read_inside(self._inside, final=final)
        content = "" if self._inside is not None else self._read_content(final=final)
        if not content and not reasoning and not self._stopped:
            return NOTHING
        return Piece(content, reasoning, self._stopped)

    def _decide(self, *, final: bool) -> bool:
        """Find out whether the answer starts with a marker; False while that is open."""
        start = self._held.lstrip()
        for marker in self._markers:
            if start.startswith(marker.opening):
                self._held = start[len(marker.opening) :]
                self._inside, self._undecided, self._strip = marker, False, True
                return True
        if not final and any(m.opening.startswith(start) for m in self._markers):
            return False
        self._undecided = False
        return True

    def _read_inside(self, marker: Marker, *, final: bool) -> str:
        self._strip_held()
        at = self._held.find(marker.closing)
        if at >= 0:
            text = self._held[:at].rstrip()
            self._held = self._held[at + len(marker.closing) :]
            self._inside, self._strip = None, True
            return text
        keep = 0 if final else _overlap(self._held, [marker.closing])
        shown = self._held[: len(self._held) - keep]
        if not final:  # white space before the closing tag is not a part of the text
            shown = shown.rstrip()
        self._held = self._held[len(shown) :]
        return shown

    def _read_content(self, *, final: bool) -> str:
        self._strip_held()
        found = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            text = self._held[: min(found)]
            self._held, self._stopped = "", True
            return text
        keep = 0 if final else _overlap(self._held, self._stop)
        end = len(self._held) - keep
        text, self._held = self._held[:end], self._held[end:]
        return text

    def _strip_held(self) -> None:
        if self._strip:
            self._held = self._held.lstrip()
            self._strip = not self._held


def _overlap(text: str, words: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a real beginning of one of `words`."""
    longest = min(len(text), max((len(w) for w in words), default=0))
    for n in range(longest, 0, -1):
        end = text[len(text) - n :]
        if any(w.startswith(end) and len(w) > n for w in words):
            return n
    return 0
