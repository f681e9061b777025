"""Texts and ids of a request as tokens that the model knows, and has room for.

Shared by both engines: a vocabulary says what a token is, this says what is refused and how.
Safe from any thread, like the vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from edged.errors import ContextLengthExceeded, InvalidRequest


class Vocab(Protocol):
    """What is asked of an engine's vocabulary."""

    n_tokens: int
    bos: int | None
    bos_text: str

    def fewest(self, n_characters: int, /) -> int:
        """Return how many tokens a text of this length has at least."""
        ...

    def tokenize(self, parts: Sequence[tuple[str, bool]], /, *, wrap: bool) -> list[int]:
        """Return the tokens of a text in parts; raises ValueError where it cannot."""
        ...


class TextReader:
    """Texts of one loaded model, of at most `most` tokens each."""

    def __init__(
        self, vocab: Vocab, most: int, too_long: Callable[[str, str], ContextLengthExceeded]
    ) -> None:
        """`too_long`: the error for so many tokens ("90", "at least 90") of a parameter."""
        self._vocab = vocab
        self._most = most
        self._too_long = too_long

    def tokenize(self, parts: Iterable[tuple[str, bool]], param: str, *, wrap: bool) -> list[int]:
        """Return the tokens of a text in parts, True: with control tokens in it.

        Raises InvalidRequest, and ContextLengthExceeded where no tokenizer is needed to see it.
        """
        parts = list(parts)
        fewest = self._vocab.fewest(sum(len(text) for text, _ in parts))
        if fewest > self._most:  # megabytes are not worth the seconds that they take
            raise self._too_long(f"at least {fewest}", param)
        try:
            return self._vocab.tokenize(parts, wrap=wrap)
        except ValueError as error:
            raise InvalidRequest(str(error), param=param) from error

    def fitting(self, tokens: list[int], param: str) -> list[int]:
        """Return `tokens`; raises ContextLengthExceeded where there is no room for them."""
        if len(tokens) > self._most:
            raise self._too_long(str(len(tokens)), param)
        return tokens

    def check(self, tokens: Iterable[int], param: str) -> None:
        """Raise InvalidRequest unless all of them are tokens of the model."""
        n_vocab = self._vocab.n_tokens
        wrong = next((token for token in tokens if not 0 <= token < n_vocab), None)
        if wrong is not None:
            raise InvalidRequest(
                f"`{param}`: token {wrong} is outside the vocabulary of this model "
                f"(0 to {n_vocab - 1})",
                param=param,
            )


class PromptReader(TextReader):
    """Prompts of one loaded model with `context` tokens a request, an answer's first included."""

    def __init__(self, vocab: Vocab, context: int) -> None:
        super().__init__(vocab, context - 1, self._too_long_prompt)
        self._context = context

    def wraps(self, text: str) -> bool:
        """Tell whether a rendered conversation wants BOS: one that writes it gets no second."""
        return not (self._vocab.bos_text and text.startswith(self._vocab.bos_text))

    def begin(self, tokens: list[int], param: str) -> list[int]:
        """Return what the model reads for a prompt of these tokens; raises InvalidRequest.

        Nothing at all is BOS, where the model has one.
        """
        if not tokens:
            if self._vocab.bos is None:
                raise InvalidRequest("the prompt is empty; give at least one token", param="prompt")
            tokens = [self._vocab.bos]
        return self.fitting(tokens, param)

    def _too_long_prompt(self, n_tokens: str, param: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            # clients know this error by the words "this model's maximum context length is"
            f"the prompt has {n_tokens} tokens; this model's maximum context length is "
            f"{self._context} tokens, prompt and answer together; shorten the prompt or raise "
            "`context` of this model",
            param=param,
        )
