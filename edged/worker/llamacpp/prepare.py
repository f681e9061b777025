"""A request becomes tokens: template, vocabulary, and the checks that need the model's facts.

Safe from any thread: it reads what does not change after the load. Long prompts take a while, so
the engine calls it in a pool beside the loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from edged import protocol
from edged.errors import ContextLengthExceeded, InvalidRequest
from edged.protocol import Generate, Messages
from edged.worker import output
from edged.worker.guard import Guard
from edged.worker.llamacpp.sampling import Sampler
from edged.worker.llamacpp.sequence import Sequence
from edged.worker.llamacpp.vocabulary import Vocab
from edged.worker.template import Template


class Prepared(NamedTuple):
    """What a generation needs before it is admitted."""

    sequence: Sequence
    sampler: Sampler
    output: output.Output


class Preparer:
    """Prompts of one loaded model with `context` tokens a request."""

    def __init__(self, vocab: Vocab, chat_template: str | None, context: int) -> None:
        self._vocab = vocab
        self._context = context
        self._guard = Guard(vocab.silent)
        self._format = output.find(chat_template)
        self._template = Template(
            chat_template,
            bos=vocab.bos_text,
            eos=vocab.eos_text,
            chatml=vocab.has("<|im_start|>") and vocab.has("<|im_end|>"),
            guard=self._guard,
        )

    @property
    def has_template(self) -> bool:
        """The model can hold a conversation."""
        return self._template.usable

    def prepare(self, request: Generate) -> Prepared:
        """Return tokens and state of a request; raises InvalidRequest and its kind."""
        tokens, shown = self._read(request)
        if not tokens:
            if self._vocab.bos is None:
                raise InvalidRequest("the prompt is empty; give at least one token", param="prompt")
            tokens = [self._vocab.bos]
        if len(tokens) >= self._context:
            raise self._too_long(str(len(tokens)), _param(request))
        if request.max_tokens is not None and request.max_tokens < 1:
            raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
        self._check(list(request.sampling.logit_bias or ()), "logit_bias")
        sampler = Sampler(
            request.sampling,
            prompt=tokens,
            ends=self._vocab.ends,
            suppressed=self._vocab.suppressed,
        )
        sequence = Sequence(
            tokens, context=self._context, max_tokens=request.max_tokens, group=request.group
        )
        return Prepared(sequence, sampler, shown)

    def _read(self, request: Generate) -> tuple[list[int], output.Output]:
        prompt = request.prompt
        if isinstance(prompt, Messages):
            text = self._template.render(prompt)
            # A template that writes BOS itself must not get a second one.
            wrap = not (self._vocab.bos_text and text.startswith(self._vocab.bos_text))
            shown = output.Output(
                request.stop, form=self._format, prompt=text, continued=prompt.continue_last
            )
            return self._tokenize(self._guard.split(text), request, wrap=wrap), shown
        shown = output.Output(request.stop)
        if isinstance(prompt, protocol.Text):
            return self._tokenize([(prompt.text, False)], request, wrap=True), shown
        self._check(prompt.tokens, "prompt")
        return list(prompt.tokens), shown

    def _tokenize(
        self, parts: Iterable[tuple[str, bool]], request: Generate, *, wrap: bool
    ) -> list[int]:
        """Return the tokens of a prompt in parts, True: with control tokens in it."""
        parts = list(parts)
        fewest = self._vocab.fewest(sum(len(text) for text, _ in parts))
        if fewest >= self._context:  # megabytes are not worth the seconds that they take
            raise self._too_long(f"at least {fewest}", _param(request))
        try:
            return self._vocab.tokenize(parts, wrap=wrap)
        except ValueError as error:
            raise InvalidRequest(str(error), param=_param(request)) from error

    def _too_long(self, n_tokens: str, param: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"the prompt has {n_tokens} tokens, the context is {self._context} tokens, "
            "prompt and answer together; shorten the prompt or raise `context` of this model",
            param=param,
        )

    def _check(self, tokens: list[int], param: str) -> None:
        n_vocab = self._vocab.n_tokens
        wrong = next((t for t in tokens if not 0 <= t < n_vocab), None)
        if wrong is not None:
            raise InvalidRequest(
                f"token {wrong} is outside the vocabulary of this model (0 to {n_vocab - 1})",
                param=param,
            )


def _param(request: Generate) -> str:
    return "messages" if isinstance(request.prompt, Messages) else "prompt"
