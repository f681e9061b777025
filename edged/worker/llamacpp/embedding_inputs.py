"""A request for vectors or scores becomes token lists, each within the model's context.

Safe from any thread: it reads what does not change after the load.
"""

from __future__ import annotations

import re

from edged.errors import ContextLengthExceeded, InvalidRequest
from edged.protocol import Detokenize, Detokenized, Embed, Rerank, Text, Tokenize, Tokenized
from edged.worker.guard import Guard
from edged.worker.llamacpp.embedding_runner import Frame
from edged.worker.llamacpp.vocabulary import Vocab
from edged.worker.texts import TextReader

_PLACES = re.compile(r"\{query\}|\{document\}")


class InputReader:
    """Inputs of one loaded model with `context` tokens each."""

    def __init__(
        self, vocab: Vocab, context: int, *, width: int, template: str | None, frame: Frame
    ) -> None:
        """`template`: text of a rerank model around `{query}` and `{document}`.

        `width`: the numbers of a vector.
        """
        self._vocab = vocab
        self._context = context
        self._width = width
        self._template = template
        self._frame = frame
        self._texts = TextReader(vocab, context, self._too_long)
        self._guard = Guard(vocab.silent)

    def embed(self, request: Embed) -> list[list[int]]:
        """Return the tokens of each input; raises InvalidRequest, ContextLengthExceeded."""
        if request.dimensions and request.dimensions > self._width:
            raise InvalidRequest(
                f"`dimensions` is {request.dimensions}, this model's vectors have {self._width}; "
                "ask for as many at the most",
                param="dimensions",
            )
        many = len(request.inputs) > 1
        found = []
        for i, given in enumerate(request.inputs):
            param = f"input[{i}]" if many else "input"
            if isinstance(given, Text):
                tokens = self._texts.tokenize([(given.text, False)], param, wrap=True)
            else:
                self._texts.check(given.tokens, param)
                tokens = given.tokens
            found.append(self._fitting(tokens, param))
        return found

    def rerank(self, request: Rerank) -> list[list[int]]:
        """Return the tokens of the query with each document; raises like `embed`."""
        if self._template is not None:
            return [
                self._filled(request.query, document, f"documents[{i}]")
                for i, document in enumerate(request.documents)
            ]
        frame = self._frame
        head = [
            *frame.head,
            *self._texts.tokenize([(request.query, False)], "query", wrap=False),
            *frame.middle,
        ]
        self._fitting(head, "query")
        found = []
        for i, document in enumerate(request.documents):
            param = f"documents[{i}]"
            tokens = self._texts.tokenize([(document, False)], param, wrap=False)
            found.append(self._fitting([*head, *tokens, *frame.tail], param))
        return found

    def _filled(self, query: str, document: str, param: str) -> list[int]:
        assert self._template is not None
        values = {"{query}": self._guard.mark(query), "{document}": self._guard.mark(document)}
        text = _PLACES.sub(lambda place: values[place[0]], self._template)
        return self._fitting(
            self._texts.tokenize(self._guard.split(text), param, wrap=False), param
        )

    def call(self, request: Tokenize | Detokenize) -> Tokenized | Detokenized:
        """Answer what the vocabulary alone can answer."""
        if isinstance(request, Tokenize):
            return self._vocab.tokenized(request)
        self._texts.check(request.tokens, "tokens")
        return self._vocab.detokenized(request)

    def _fitting(self, tokens: list[int], param: str) -> list[int]:
        if not tokens:
            raise InvalidRequest(f"`{param}` is empty; give it at least one token", param=param)
        return self._texts.fitting(tokens, param)

    def _too_long(self, n_tokens: str, param: str) -> ContextLengthExceeded:
        with_query = " together with the query" if param.startswith("documents") else ""
        return ContextLengthExceeded(
            f"`{param}` has {n_tokens} tokens{with_query}; this model's maximum context length is "
            f"{self._context} tokens; shorten it, cut it into pieces, or raise `context` of this "
            "model where the model "
            "allows more",
            param=param,
        )
