"""The text that a client is to see: stop strings end it, white space around calls is no part of it.

A text that could still become a stop string is held back, and so is white space that a call may
follow. Both are at most a few characters, or one run of white space.
"""

from __future__ import annotations

from collections.abc import Sequence

from edged.worker.output.source import overlap

_SPACES = 4096  # a longer run is text, whatever follows


class Content:
    """The content of one answer. `calls`: tool calls may follow it."""

    def __init__(self, stop: Sequence[str], *, calls: bool) -> None:
        self._stop = [s for s in stop if s]
        self._calls = calls
        self._held = ""  # may become a stop string
        self._spaces = ""  # may stand before a call
        self._strip = False  # drop white space before the next text
        self._out: list[str] = []
        self.met: str | None = None

    @property
    def settled(self) -> bool:
        """Nothing is held back, and the next text is shown as it is."""
        return not (self._held or self._spaces or self._strip)

    @property
    def first(self) -> str:
        """The characters that a stop string may start with."""
        return "".join({s[0] for s in self._stop})

    def say(self, text: str) -> None:
        """Take text that is content."""
        if self.met is not None or not text:
            return
        if not self._stop:
            self._show(text)
            return
        text, self._held = self._held + text, ""
        found = [(at, s) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            at, self.met = min(found, key=lambda f: f[0])
            self._show(text[:at])
            self._release()
            return
        keep = overlap(text, self._stop)
        self._held = text[len(text) - keep :]
        self._show(text[: len(text) - keep])

    def before_call(self) -> None:
        """Say what was held back, but for white space: a call follows."""
        self._show(self._held)
        self._held = self._spaces = ""

    def after_call(self) -> None:
        """Drop white space before the next text."""
        self._strip = True

    def finish(self) -> None:
        """Say what was held back: nothing follows."""
        self._show(self._held)
        self._held = ""
        self._release()

    def drain(self) -> str:
        """Return what may be shown now."""
        if not self._out:
            return ""
        text = "".join(self._out)
        self._out.clear()
        return text

    def _release(self) -> None:
        self._out.append(self._spaces)
        self._spaces = ""

    def _show(self, text: str) -> None:
        if self._strip:
            text = text.lstrip()
            if not text:
                return
            self._strip = False
        if not self._calls:
            self._out.append(text)
            return
        shown = text.rstrip()
        if shown:
            self._out += (self._spaces, shown)
            self._spaces = text[len(shown) :]
        else:
            self._spaces += text
        if len(self._spaces) > _SPACES:
            self._release()
