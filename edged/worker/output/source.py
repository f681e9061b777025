"""Text that arrives in pieces, for readers that are written as if it were all there.

A reader is a generator that yields when it needs more text. It decides nothing before the text
decides it, so the pieces may be cut anywhere: that is where the rule "half a tag is held back"
lives. All waits are here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]

_SPACE = re.compile(r"\s*")


class Source:
    """What has arrived and is not read yet, and what was read since `mark`."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._kept: list[str] | None = None
        self._trigger = 0  # pieces of `_kept` that are before the trigger's end

    @property
    def empty(self) -> bool:
        """Everything that has arrived is read."""
        return self.at >= len(self.text)

    @property
    def left(self) -> int:
        """How many characters are not read yet."""
        return len(self.text) - self.at

    def feed(self, text: str) -> None:
        """Add text at the end."""
        self.text = self.text[self.at :] + text
        self.at = 0

    def take(self, n: int) -> str:
        """Read `n` characters that are there."""
        taken = self.text[self.at : self.at + n]
        self.at += n
        if self._kept is not None:
            self._kept.append(taken)
        return taken

    def overlap(self, words: Sequence[str]) -> int:
        """Length of the longest end of the text that is a real beginning of one of `words`."""
        longest = max((len(word) for word in words), default=0)
        return overlap(self.text[max(self.at, len(self.text) - longest) :], words)

    def back(self, n: int) -> None:
        """Read the last `n` characters again; they were read just now."""
        self.at -= n

    def mark(self) -> None:
        """Keep what is read from here on."""
        self._kept = []
        self._trigger = 0

    def kept(self) -> str:
        """Return what was read since `mark`."""
        return "".join(self._kept or ())

    def unmark(self) -> str:
        """Return what was read since `mark` and keep no more."""
        kept, self._kept = self.kept(), None
        return kept

    def mark_trigger(self) -> None:
        """Note that a trigger ends here."""
        self._trigger = len(self._kept or ())

    def since_trigger(self) -> str:
        """Return what has arrived after the trigger."""
        return "".join((self._kept or [])[self._trigger :]) + self.text[self.at :]

    # ── reading ──

    def more(self) -> Reading[bool]:
        """Wait for more text; False when none will come."""
        seen = self.left
        while self.left <= seen:
            if self.ended:
                return False
            yield
        return True

    def peek(self) -> Reading[str]:
        """Return the next character, "" at the end."""
        if self.empty and not (yield from self.more()):
            return ""
        return self.text[self.at]

    def spaces(self) -> Reading[str]:
        """Skip white space; return the character that follows, "" at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            if match and match[0]:
                self.take(len(match[0]))
            if not self.empty:
                return self.text[self.at]
            if not (yield from self.more()):
                return ""

    def tag(self, text: str) -> Reading[bool]:
        """Read exactly `text`; otherwise nothing is read."""
        while not self.text.startswith(text, self.at):
            if self.left >= len(text) or not text.startswith(self.text[self.at :]):
                return False
            if not (yield from self.more()):
                return False
        self.take(len(text))
        return True

    def words(self, text: str) -> Reading[bool]:
        """Read `text`, whatever white space is around its words; what was read may be a part."""
        for word in text.split():
            yield from self.spaces()
            if not (yield from self.tag(word)):
                return False
        return True

    def until(
        self,
        stops: Sequence[str],
        *,
        limit: int,
        sink: Callable[[str], None] | None = None,
        half: bool = True,
    ) -> Reading[tuple[str, str]]:
        """Read up to the first of `stops`, and with it; return the text before it and the stop.

        The stop is "" if the text ended or grew beyond `limit` characters first. With `sink` the
        text goes there as it comes, and "" is returned in its place. Without `half`, half a stop at
        the end of everything does not count as text.
        """
        pattern = re.compile("|".join(re.escape(stop) for stop in stops))
        parts: list[str] = []
        give = sink or parts.append
        n = 0
        while True:
            match = pattern.search(self.text, self.at)
            free = match.start() - self.at if match else self.left - self.overlap(stops)
            if n + free > limit:  # the same place, however the text was cut
                give(self.take(limit - n))
                return "".join(parts), ""
            if free:
                give(self.take(free))
                n += free
            if match is not None:
                return "".join(parts), self.take(len(match[0]))
            if not (yield from self.more()):
                rest = self.take(self.left)
                if half and rest:
                    give(rest)
                return "".join(parts), ""


def overlap(text: str, words: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a real beginning of one of `words`."""
    longest = min(len(text), max((len(w) for w in words), default=0))
    for n in range(longest, 0, -1):
        end = text[len(text) - n :]
        if any(len(w) > n and w.startswith(end) for w in words):
            return n
    return 0
