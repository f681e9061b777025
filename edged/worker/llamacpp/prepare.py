"""A request becomes tokens: template, vocabulary, and the checks that need the model's facts.

Safe from any thread: it reads what does not change after the load. Long prompts take a while, so
the engine calls it in a pool beside the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from edged.errors import InvalidRequest, UnsupportedParameter
from edged.protocol import (
    DEFAULTS,
    Detokenize,
    Detokenized,
    Generate,
    Messages,
    Render,
    Rendered,
    Text,
    Tokenize,
    Tokenized,
    Tokens,
)
from edged.worker import output
from edged.worker.guard import Guard
from edged.worker.llamacpp import answer_grammar
from edged.worker.llamacpp import dry as repetitions
from edged.worker.llamacpp.answer_grammar import Calls, Needed
from edged.worker.llamacpp.dry import Breakers, Dry, find_breakers
from edged.worker.llamacpp.multimodal import Piece, Projector, Vectors
from edged.worker.llamacpp.sampling import Sampler
from edged.worker.llamacpp.seen import Seen, see
from edged.worker.llamacpp.sequence import Sequence, Span
from edged.worker.llamacpp.vocabulary import Vocab
from edged.worker.markers import Markers
from edged.worker.output import reasoning
from edged.worker.template import Template
from edged.worker.texts import PromptReader

_MOST_BREAKERS = 32  # each one is looked for in the whole vocabulary
_MOST_KEPT = 64  # lists of them


class Prepared(NamedTuple):
    """What a generation needs before it is admitted."""

    sequence: Sequence
    sampler: Sampler
    output: output.Output
    ends: frozenset[int]  # tokens that end the answer
    likelihoods: int | None  # alternatives told with each token
    echo: str  # the prompt's text, if it is to be told
    grammar: Needed | None = None  # of the whole answer
    enforced: bool = False  # … which is a call
    calls: Calls | None = None  # that a free answer may begin
    likely: tuple[Needed, ...] = ()  # the grammars of those
    thinking: bool = False  # the prompt has opened the reasoning
    thinking_budget: int | None = None  # tokens of reasoning at most
    closing: tuple[int, ...] = ()  # tokens that end the reasoning
    pieces: tuple[Piece, ...] = ()  # of images and sounds: one for each span of the sequence
    vectors: tuple[Vectors, ...] = ()  # of the pieces, once they are encoded


class Preparer:
    """Prompts of one loaded model with `context` tokens a request."""

    def __init__(
        self,
        vocab: Vocab,
        chat_templates: Mapping[str, str],
        context: int,
        output_format: str = "auto",
        *,
        projector: Projector | None = None,
        batch: int = 1,
    ) -> None:
        """`batch`: tokens of a step; `projector`: the model takes images or sounds."""
        self._projector = projector
        self._batch = batch
        self._vocab = vocab
        self._context = context
        self._texts = PromptReader(vocab, context)
        self._guard = Guard(vocab.silent)
        self._format = output.find(chat_templates.get("default"), output_format)
        self._template = Template(
            chat_templates,
            bos=vocab.bos_text,
            eos=vocab.eos_text,
            chatml=vocab.has("<|im_start|>") and vocab.has("<|im_end|>"),
            guard=self._guard,
        )
        self._form = output.find(
            self._template.source, output_format, shows_tools=self._template.supports_tools
        )
        self._breakers: dict[tuple[str, ...], Breakers] = {}

    @property
    def has_template(self) -> bool:
        """The model can hold a conversation."""
        return self._template.usable

    def prepare(self, request: Generate) -> Prepared:
        """Return tokens and state of a request; raises InvalidRequest and its kind."""
        prompt = request.prompt
        if isinstance(prompt, Messages):
            shown = self._without_tools(prompt) if request.tool_choice.mode == "none" else prompt
            if shown.media:
                text, seen = self._see(shown)
                prepared = self._begin(request, seen.tokens, seen.spans)
                return self._conversation(request, prepared, text)._replace(pieces=seen.pieces)
            text = self._template.render(shown)
            tokens = self._texts.tokenize(
                self._guard.split(text), "messages", wrap=self._texts.wraps(text)
            )
            return self._conversation(request, self._begin(request, tokens), text)
        if isinstance(prompt, Text):
            if prompt.suffix is not None:
                tokens = self._with_gap(prompt, prompt.suffix)
            else:
                tokens = self._texts.tokenize([(prompt.text, False)], "prompt", wrap=True)
        else:
            self._texts.check(prompt.tokens, "prompt")
            tokens = list(prompt.tokens)
        prepared = self._begin(request, tokens)
        if request.constraint is not None:
            prepared = prepared._replace(grammar=answer_grammar.content(request.constraint))
        return prepared

    def _see(self, prompt: Messages) -> tuple[str, Seen]:
        """Return the text of a conversation with images or sounds, and its places."""
        if self._projector is None:
            raise InvalidRequest("this model reads text only", param="messages")
        markers = Markers(prompt)
        text = self._template.render(markers.prompt)
        runs = markers.split(self._guard.split(text))
        seen = see(
            runs,
            prompt.media,
            projector=self._projector,
            vocab=self._vocab,
            tokenize=lambda run: self._texts.tokenize(run, "messages", wrap=False),
            wrap=self._texts.wraps(text),
            batch=self._batch,
        )
        return markers.shown(text), seen

    def _begin(
        self, request: Generate, tokens: list[int], spans: tuple[Span, ...] = ()
    ) -> Prepared:
        """Return what a generation after these tokens needs, whatever they stand for."""
        tokens = self._texts.begin(tokens, _param(request))
        if request.max_tokens is not None and request.max_tokens < 1:
            raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
        n_vocab = self._vocab.n_tokens
        written = [t for t in tokens if t < n_vocab] if spans else tokens
        return Prepared(
            sequence=Sequence(
                tokens,
                context=self._context,
                max_tokens=request.max_tokens,
                group=request.group,
                spans=spans,
                border=self._border(tokens),
            ),
            sampler=self._sampler(request, written),
            output=output.Output(request.stop),
            ends=self._vocab.ends.union(request.stop_tokens),
            likelihoods=request.logprobs,
            echo=self._echo(request, tokens),
        )

    def _border(self, tokens: list[int]) -> int:
        """Return the place of the last control token.

        What a template ends a prompt with, to make the model answer, is not what it begins the
        answer with in the next turn's prompt, but both have the same control tokens.
        """
        control = self._vocab.control
        return next((n for n in reversed(range(len(tokens))) if tokens[n] in control), 0)

    def _conversation(self, request: Generate, prepared: Prepared, text: str) -> Prepared:
        """Add how this model writes reasoning and calls, and what grammar follows from it."""
        prompt = request.prompt
        assert isinstance(prompt, Messages)
        form, token_of = self._form, self._vocab.tags.get
        grammar = answer_grammar.demanded(request, form, text, token_of)
        tools = prompt.tools if request.tool_choice.mode != "none" else None
        calls = Calls(request, form, token_of) if tools and grammar is None else None
        budget, closing = request.reasoning_budget, None
        if budget is not None:
            closing = answer_grammar.closing(request, form, text)
        return prepared._replace(
            output=output.Output(
                request.stop,
                form=form,
                prompt=text,
                continued=prompt.continue_last,
                tools=tools,
                choice=request.tool_choice,
            ),
            grammar=grammar,
            enforced=bool(tools) and request.constraint is None,
            calls=calls,
            likely=tuple(calls.likely()) if calls else (),
            thinking=reasoning.opened(form, text) is not None,
            thinking_budget=budget if closing else None,
            closing=tuple(self._vocab.tokenize([(closing, True)], wrap=False)) if closing else (),
        )

    @staticmethod
    def _without_tools(prompt: Messages) -> Messages:
        return msgspec.structs.replace(prompt, tools=None)

    def _sampler(self, request: Generate, tokens: list[int]) -> Sampler:
        said = request.sampling.over(DEFAULTS)
        self._texts.check(said.logit_bias or (), "logit_bias")
        self._texts.check(request.stop_tokens, "stop_token_ids")
        dry = None
        if repetitions.wanted(said):
            breakers = self._find_breakers(tuple(said.dry_sequence_breakers or ()))
            dry = Dry(said, tokens, breakers, context=self._context)
        return Sampler(
            said,
            prompt=tokens,
            ends=self._vocab.ends,
            stops=request.stop_tokens,
            suppressed=self._vocab.suppressed,
            dry=dry,
        )

    def _find_breakers(self, texts: tuple[str, ...]) -> Breakers:
        found = self._breakers.get(texts)
        if found is None:
            if len(texts) > _MOST_BREAKERS:
                raise InvalidRequest(
                    f"dry_sequence_breakers has {len(texts)} texts, at most {_MOST_BREAKERS} "
                    "are allowed",
                    param="dry_sequence_breakers",
                )
            vocab = self._vocab
            spellings = [vocab.spelling(token) for token in range(vocab.n_tokens)]
            found = find_breakers(
                texts, spellings, lambda text: vocab.tokenize([(text, False)], wrap=False)
            )
            if len(self._breakers) >= _MOST_KEPT:
                self._breakers.clear()
            self._breakers[texts] = found
        return found

    def _echo(self, request: Generate, tokens: list[int]) -> str:
        if not request.echo:
            return ""
        if request.logprobs is not None:
            raise UnsupportedParameter(
                "log-probabilities of the prompt's own tokens are not computed; "
                "leave out `echo` or `logprobs`",
                param="echo",
            )
        match request.prompt:
            case Text(text):
                return text
            case Tokens():
                data = b"".join(self._vocab.spelling(token) for token in tokens)
                return data.decode("utf-8", "replace")
            case _:
                return ""

    def call(self, request: Tokenize | Detokenize | Render) -> Tokenized | Detokenized | Rendered:
        """Answer what the vocabulary and the template alone can answer."""
        vocab = self._vocab
        if isinstance(request, Render):
            if request.prompt.media:
                text, seen = self._see(request.prompt)
                return Rendered(request.id, self._guard.unmark(text), len(seen.tokens))
            text = self._template.render(request.prompt)
            tokens = vocab.tokenize(list(self._guard.split(text)), wrap=self._texts.wraps(text))
            return Rendered(request.id, self._guard.unmark(text), len(tokens))
        if isinstance(request, Tokenize):
            return vocab.tokenized(request)
        self._texts.check(request.tokens, "tokens")
        return vocab.detokenized(request)

    def _with_gap(self, prompt: Text, suffix: str) -> list[int]:
        """Return the prompt for what stands between two texts, as llama-server's /infill has it."""
        before, behind, middle = self._vocab.gap
        if before is None or behind is None or middle is None:
            raise InvalidRequest(
                "this model knows no tokens for filling a gap between two texts; leave out "
                "`suffix`, or use a model that was trained for it",
                param="suffix",
            )
        head = [self._vocab.bos] if self._vocab.add_bos and self._vocab.bos is not None else []
        prefix = self._texts.tokenize([(prompt.text, False)], "prompt", wrap=False)
        rest = self._texts.tokenize([(suffix, False)], "prompt", wrap=False)
        return [*head, before, *prefix, behind, *rest, middle]


def _param(request: Generate) -> str:
    return "messages" if isinstance(request.prompt, Messages) else "prompt"
