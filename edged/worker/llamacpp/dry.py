"""DRY: the longer a text that is being repeated, the less likely its next token.

As llama.cpp's sampler of this name (a port of Koboldcpp's), token for token. What it computes anew
in every step with the Z algorithm is carried along here: for each place, how many tokens before it
are the same as the last ones of the text. One more token costs one comparison of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edged.protocol import Sampling

Row = npt.NDArray[np.float32]
#: First token of a breaker → the tokens that must follow it, () if it is one by itself.
Breakers = dict[int, list[tuple[int, ...]]]

_LONGEST_BREAKER = 40  # bytes
_LONGEST_TAIL = 20  # tokens
_FLOAT_MAX_LOG = 88.7228391  # of float32: the largest exponent of a penalty


def wanted(said: Sampling) -> bool:
    """Tell whether these settings change anything."""
    off = not said.dry_multiplier or (said.dry_base or 0.0) < 1.0 or said.dry_penalty_last_n == 0
    return not off


def find_breakers(
    texts: Sequence[str], spellings: Sequence[bytes], tokenize: Callable[[str], list[int]]
) -> Breakers:
    """Return the tokens at which a repetition ends: those that hold a text, or begin one.

    `spellings` are the bytes of every token of the vocabulary.
    """
    found: Breakers = {}
    ending: dict[int, list[int]] = {}
    for token, word in enumerate(spellings):
        if word:
            ending.setdefault(word[-1], []).append(token)
    for text in texts:
        data = text.encode()[:_LONGEST_BREAKER]
        if not data:
            continue
        holding = [token for token, word in enumerate(spellings) if data in word]
        for token in holding:
            found.setdefault(token, []).append(())
        inside = set(holding)
        for n in range(1, len(data)):
            tail = tuple(tokenize(data[n:].decode("utf-8", "replace")))[:_LONGEST_TAIL]
            for token in ending.get(data[n - 1], ()):
                tails = found.setdefault(token, [])
                if token not in inside and spellings[token].endswith(data[:n]):
                    tails += [] if tail in tails else [tail]
    return {token: tails for token, tails in found.items() if tails}


class Dry:
    """The repetitions of one generation."""

    def __init__(
        self, said: Sampling, prompt: list[int], breakers: Breakers, *, context: int
    ) -> None:
        """`context` is the window where `dry_penalty_last_n` is -1."""
        last_n = -1 if said.dry_penalty_last_n is None else said.dry_penalty_last_n
        self._multiplier = said.dry_multiplier or 0.0
        self._base = said.dry_base or 1.0
        self._allowed = said.dry_allowed_length or 0
        self._window = context if last_n < 0 else last_n
        self._breakers = breakers
        self._most = (
            int(_FLOAT_MAX_LOG / math.log(self._base)) if self._base > 1.000001 else 0  # noqa: PLR2004
        )
        self._n = len(prompt)
        self._tokens = np.zeros(self._n + 1024, np.int64)
        self._tokens[: self._n] = prompt
        # At each place: how many tokens up to it are those at the end of the text.
        self._repeats = _common_ends(self._tokens[: self._n], len(self._tokens))

    def take(self, token: int) -> None:
        """Go on by a token."""
        if self._n == len(self._tokens):
            self._tokens = np.resize(self._tokens, 2 * self._n)
            self._repeats = np.resize(self._repeats, 2 * self._n)
        n = self._n
        self._tokens[n] = token
        self._n = n + 1
        before = self._repeats[:n].copy()
        same = self._tokens[: n + 1] == token
        self._repeats[0] = same[0]
        self._repeats[1 : n + 1] = np.where(same[1:], before + 1, 0)

    def adjust(self, row: Row) -> None:
        """Lower the logits of the tokens that would go on with a repetition."""
        n = min(self._n, self._window)
        if n <= self._allowed:
            return
        tokens = self._tokens[self._n - n : self._n]
        lengths = np.minimum(self._repeats[self._n - n : self._n - 1], np.arange(1, n))
        limit = self._limit(tokens, int(lengths.max(initial=0)))
        if limit < self._allowed:
            return
        lengths = np.minimum(lengths, limit)
        places = np.flatnonzero(lengths >= self._allowed)
        longest: dict[int, int] = {}
        for token, length in zip(
            tokens[places + 1].tolist(), lengths[places].tolist(), strict=True
        ):
            if length > longest.get(token, -1):
                longest[token] = length
        for token, length in longest.items():
            if () in self._breakers.get(token, ()):
                continue
            exponent = length - self._allowed
            if 0 < self._most < exponent:
                exponent = self._most
            row[token] -= np.float32(self._multiplier * self._base**exponent)

    def _limit(self, tokens: npt.NDArray[Any], longest: int) -> int:
        """Return how long a repetition may count: it does not reach over a breaker."""
        n = len(tokens)
        # What lies further back than the longest repetition limits nothing.
        recent = tokens[max(0, n - longest - _LONGEST_TAIL - 1) :].tolist()[::-1]
        for i, token in enumerate(recent):
            tails = self._breakers.get(token)
            if tails is None:
                continue
            matching = [
                len(tail)
                for tail in tails
                if len(tail) <= i and all(tail[k] == recent[i - k - 1] for k in range(len(tail)))
            ]
            if matching:
                return i - max(matching)
        return n


def _common_ends(tokens: npt.NDArray[Any], room: int) -> npt.NDArray[np.int64]:
    """Return for each place how many tokens up to it are the last ones, in an array of `room`."""
    found = np.zeros(room, np.int64)
    n = len(tokens)
    places = np.arange(n)
    for length in range(n):
        places = places[places >= length]
        places = places[tokens[places - length] == tokens[n - 1 - length]]
        if not len(places):
            break
        found[places] = length + 1
        if len(places) == 1 and places[0] == n - 1:  # only the end itself is left
            found[n - 1] = n
            break
    return found
