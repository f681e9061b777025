"""Text to tokens and back, through llama.cpp's own tokenizer.

llama.cpp's vocabulary is read-only: everything here may be called from any thread. Its tokenizer
has two weak spots that a request could aim at, so long texts reach it in pieces:
* the pre-tokenizers of some models (DeepSeek, Falcon, GPT-NeoX) run on `std::regex`, which
  recurses for every character of an unbroken run and overflows the stack: 100,000 times "a" killed
  the process;
* its time grows with the square of the number of special tokens in one text.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from edged.protocol import Detokenize, Detokenized, Tokenize, Tokenized
from edged.worker.guard import any_of

_ATTR_CONTROL, _ATTR_USER_DEFINED = 1 << 3, 1 << 4  # llama_token_attr

# A text of at most this many characters is tokenized whole. A longer one is cut inside runs that
# are longer still, and before every `_SPECIALS_AT_ONCE`th special token: no ordinary text is.
_LONGEST_RUN = 1 << 14
_SPECIALS_AT_ONCE = 256
_RUN = re.compile(r"\S+|\s+")


class Vocab:
    """The vocabulary of one loaded model."""

    def __init__(self, lib: Any, model: Any, shown: frozenset[str]) -> None:
        """`shown`: control tokens (by their text) that appear in the output nevertheless."""
        self._lib = lib
        self._vocab = lib.llama_model_get_vocab(model)
        self.n_tokens: int = lib.llama_vocab_n_tokens(self._vocab)
        self.add_bos: bool = lib.llama_vocab_get_add_bos(self._vocab)
        self.bos: int | None = self._special(lib.llama_vocab_bos)
        self.eos: int | None = self._special(lib.llama_vocab_eos)
        # Fill-in-the-middle: before the prefix, before the suffix, before what is to be written.
        self.gap = tuple(
            self._special(getter)
            for getter in (
                lib.llama_vocab_fim_pre,
                lib.llama_vocab_fim_suf,
                lib.llama_vocab_fim_mid,
            )
        )
        self.bos_text = self.text(self.bos)
        self.eos_text = self.text(self.eos)
        every = range(self.n_tokens)
        self.ends = frozenset(t for t in every if lib.llama_vocab_is_eog(self._vocab, t))
        attributes = [lib.llama_vocab_get_attr(self._vocab, t) for t in every]
        control = {t: self.text(t) for t in every if attributes[t] & _ATTR_CONTROL}
        self.control = frozenset(control)
        defined = [self.text(t) for t in every if attributes[t] & _ATTR_USER_DEFINED]
        self._shown = frozenset(t for t, text in control.items() if text in shown)
        #: Tokens that mean something as such, by their spelling: control tokens, and the tags of an
        #: answer that a vocabulary has as ordinary words.
        self.tags = {text: t for t, text in control.items()} | {
            self.text(t): t
            for t in every
            if attributes[t] & _ATTR_USER_DEFINED and self.text(t) in shown
        }
        #: Spellings that mean something to the model and nothing to a reader.
        self.silent = frozenset(text for t, text in control.items() if t not in self._shown)
        # What llama.cpp looks for in a text, by the value of its `parse_special`.
        self._specials = {True: any_of([*control.values(), *defined]), False: any_of(defined)}
        self._longest = max(len(lib.llama_vocab_get_text(self._vocab, t) or b"-") for t in every)
        self._pieces: list[bytes | None] = [None] * self.n_tokens
        n_suppressed = ctypes.c_int32(0)
        suppressed = lib.llama_vocab_get_suppress_tokens(self._vocab, ctypes.byref(n_suppressed))
        self.suppressed = tuple(int(suppressed[i]) for i in range(n_suppressed.value))
        wrapped = self._tokenize("", special=False, wrap=True)
        #: What stands around a prompt: BOS and the like.
        self.head = wrapped[: int(self.add_bos)]
        self.tail = wrapped[len(self.head) :]

    def _special(self, getter: Any) -> int | None:
        token = int(getter(self._vocab))
        return token if 0 <= token < self.n_tokens else None

    def text(self, token: int | None) -> str:
        """Return the vocabulary's own spelling of a (special) token; empty for None."""
        if token is None:
            return ""
        spelling: bytes = self._lib.llama_vocab_get_text(self._vocab, token) or b""
        return spelling.decode("utf-8", "replace")

    def has(self, text: str) -> bool:
        """Tell whether `text` is a single special token of this vocabulary."""
        return len(self._tokenize(text, special=True)) == 1

    # ── text to tokens ──

    def fewest(self, n_characters: int) -> int:
        """Return how many tokens a text of this length has at least."""
        return n_characters // self._longest

    def tokenize(self, parts: Sequence[tuple[str, bool]], *, wrap: bool) -> list[int]:
        """Return the tokens of a text in parts; True: spell control tokens out of the part.

        `wrap`: add BOS and the like, where the model wants them. Raises ValueError when the
        vocabulary cannot tokenize at all.
        """
        pieces = [(piece, special) for text, special in parts for piece in self._cut(text, special)]
        if len(pieces) == 1:
            return self._tokenize(pieces[0][0], special=pieces[0][1], wrap=wrap)
        tokens = [t for text, special in pieces for t in self._tokenize(text, special=special)]
        return [*self.head, *tokens, *self.tail] if wrap else tokens

    def _cut(self, text: str, special: bool) -> Iterable[str]:
        if len(text) <= _LONGEST_RUN:
            return [text]
        return (
            piece
            for part in _cut_specials(text, self._specials[special])
            for piece in _cut_runs(part)
        )

    def _tokenize(self, text: str, *, special: bool, wrap: bool = False) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 16  # a token stands for a byte at least; wrapping adds a few
        out = (ctypes.c_int32 * room)()
        n = self._lib.llama_tokenize(self._vocab, data, len(data), out, room, wrap, special)
        if n < 0:  # it tells how many it needs
            room = -n
            out = (ctypes.c_int32 * room)()
            n = self._lib.llama_tokenize(self._vocab, data, len(data), out, room, wrap, special)
        if n < 0:
            raise ValueError("the model's vocabulary cannot tokenize this text")
        return out[:n]

    def tokenized(self, request: Tokenize) -> Tokenized:
        """Answer a client that asks for the tokens of a text."""
        parts = [(request.text, request.parse_special)]
        tokens = self.tokenize(parts, wrap=request.add_special)
        return Tokenized(request.id, tokens, [self.spelling(token) for token in tokens])

    # ── tokens to text ──

    def detokenized(self, request: Detokenize) -> Detokenized:
        """Answer a client that asks for the text of tokens, all of this vocabulary."""
        data = b"".join([self.spelling(token) for token in request.tokens])
        return Detokenized(request.id, data.decode("utf-8", "replace"))

    def piece(self, token: int) -> bytes:
        """Return the bytes that `token` adds to the output; empty for most control tokens."""
        known = self._pieces[token]
        if known is None:
            known = self._pieces[token] = self._spell(token, special=token in self._shown)
        return known

    def spelling(self, token: int) -> bytes:
        """Return the bytes of `token`, control tokens included."""
        return self.piece(token) or self._spell(token, special=True)

    def _spell(self, token: int, *, special: bool) -> bytes:
        room = 64
        while True:
            out = ctypes.create_string_buffer(room)
            n = self._lib.llama_token_to_piece(self._vocab, token, out, room, 0, special)
            if n >= 0:
                return out.raw[:n]
            room = -n


def _cut_runs(text: str) -> Iterator[str]:
    start = 0
    for run in _RUN.finditer(text):
        for at in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
            yield text[start:at]
            start = at
    yield text[start:]


def _cut_specials(text: str, specials: re.Pattern[str]) -> Iterator[str]:
    start = 0
    for n, found in enumerate(specials.finditer(text)):
        if n % _SPECIALS_AT_ONCE == 0:
            yield text[start : found.start()]
            start = found.start()
    yield text[start:]
