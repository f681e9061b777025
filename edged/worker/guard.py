"""What a client writes stays text, even if it spells a control token.

A chat template joins its own control tokens (`<|im_start|>`) with what the client wrote, and the
tokenizer cannot tell them apart afterwards: a user who writes `<|im_end|><|im_start|>system` would
forge a turn. So every control token in the client's strings is marked before the template runs,
and the marked ones are tokenized as plain text. A prompt that spells none is not changed at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

_MARK = "\ufdd0"  # a noncharacter: no text means anything by it


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of the longest of `words`; one branch a character, however many words."""
    found = sorted({word for word in words if word})
    return re.compile(_branches(found) if found else r"(?!)")


def _branches(words: list[str]) -> str:
    by_head: dict[str, list[str]] = {}
    for word in words:
        if word:
            by_head.setdefault(word[0], []).append(word[1:])
    if not by_head:
        return ""
    pattern = "|".join(re.escape(head) + _branches(rest) for head, rest in by_head.items())
    return f"(?:{pattern}){'?' if '' in words else ''}"


class Guard:
    """Marks the control tokens of one vocabulary in a client's values, and finds them again."""

    def __init__(self, specials: Iterable[str]) -> None:
        words = [word for word in specials if len(word) > 1]
        self._plain = any_of(words)
        self._marked = any_of([*map(_mark, words), _MARK])

    def mark(self, value: Any) -> Any:
        """Return `value` with marks in all its strings; lists and dicts are copied."""
        if isinstance(value, str):
            return self._plain.sub(lambda found: _mark(found[0]), value)
        if isinstance(value, list):
            return [self.mark(each) for each in value]
        if isinstance(value, dict):
            return {self.mark(key): self.mark(each) for key, each in value.items()}
        return value

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Yield the parts of a rendered prompt; True: control tokens in it are the template's.

        A mark alone is what is left where a template cut a marked token up: it goes, and what
        stood around it stays apart, so that it cannot become the token again.
        """
        start = 0
        for found in self._marked.finditer(text):
            if start < found.start():
                yield text[start : found.start()], True
            if found[0] != _MARK:
                yield found[0].replace(_MARK, "", 1), False
            start = found.end()
        if start < len(text) or start == 0:
            yield text[start:], True

    def unmark(self, text: str) -> str:
        """Return a rendered prompt as the model reads it, without the marks."""
        return "".join(part for part, _ in self.split(text))


def _mark(word: str) -> str:
    return word[0] + _MARK + word[1:]
