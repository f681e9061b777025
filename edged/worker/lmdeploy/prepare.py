"""A request becomes tokens and settings: template, vocabulary, and what the engine can honour.

Safe from any thread; long prompts take a while, so the engine calls it in a pool beside the loop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edged.errors import InvalidRequest, UnsupportedParameter
from edged.protocol import (
    Detokenize,
    Detokenized,
    Generate,
    LmdeployLaunch,
    Messages,
    Render,
    Rendered,
    Text,
    Tokenize,
    Tokenized,
)
from edged.worker import output
from edged.worker.guard import Guard
from edged.worker.lmdeploy import constraints, images, sampling
from edged.worker.lmdeploy.vocabulary import Vocab, chat_templates
from edged.worker.markers import Markers
from edged.worker.output import reasoning
from edged.worker.template import Template
from edged.worker.texts import PromptReader


class Prepared(NamedTuple):
    """What a generation needs before the engine sees it."""

    tokens: list[int]  # of the prompt; with images: about
    config: dict[str, Any]  # fields of a GenerationConfig
    output: output.Output
    ends: frozenset[int]  # tokens that end the answer
    likelihoods: int | None  # alternatives told with each token
    echo: str = ""
    messages: list[dict[str, Any]] | None = None  # with images: instead of the tokens
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = {}  # noqa: RUF012 - never changed
    enforced: bool = False  # the answer is a call, by grammar


class Preparer:
    """Prompts of one loaded model with `context` tokens a request."""

    def __init__(
        self, folder: Path, context: int, settings: LmdeployLaunch, output_format: str = "auto"
    ) -> None:
        """Raises BadModelError."""
        self.vocab = vocab = Vocab(folder, output.SHOWN_TOKENS)
        self._context = context
        self._settings = settings
        self._texts = PromptReader(vocab, context)
        self._guard = Guard(vocab.silent)
        self._template = Template(
            chat_templates(folder),
            bos=vocab.bos_text,
            eos=vocab.eos_text,
            chatml=vocab.has("<|im_start|>") and vocab.has("<|im_end|>"),
            guard=self._guard,
        )
        self._form = output.find(
            self._template.source, output_format, shows_tools=self._template.supports_tools
        )

    @property
    def has_template(self) -> bool:
        """The model can hold a conversation."""
        return self._template.usable

    def prepare(self, request: Generate) -> Prepared:
        """Return tokens and settings of a request; raises InvalidRequest and its kind."""
        self._refuse_lacking(request)
        prompt = request.prompt
        if isinstance(prompt, Messages):
            return self._conversation(request, prompt)
        if isinstance(prompt, Text):
            if prompt.suffix is not None:
                raise UnsupportedParameter(
                    "this model's engine fills no gaps; leave out `suffix`", param="suffix"
                )
            tokens = self._texts.tokenize([(prompt.text, False)], "prompt", wrap=True)
        else:
            self._texts.check(prompt.tokens, "prompt")
            tokens = list(prompt.tokens)
        echo = (prompt.text if isinstance(prompt, Text) else self.vocab.text(tokens)) * request.echo
        prepared = self._begin(request, tokens, output.Output(request.stop))
        return self._constrained(request, prepared, None, "")._replace(echo=echo)

    def _refuse_lacking(self, request: Generate) -> None:
        if request.adapters:
            raise UnsupportedParameter("this model's engine has no adapters", param="model")
        if request.reasoning_budget:
            raise UnsupportedParameter(
                "this model's engine cannot end the reasoning after so many tokens; "
                "only none (0) or no limit is possible",
                param="reasoning_budget",
            )
        if request.echo and request.logprobs is not None:
            raise UnsupportedParameter(
                "log-probabilities of the prompt's own tokens are not computed; "
                "leave out `echo` or `logprobs`",
                param="echo",
            )
        if request.group and self._settings.prefixes:
            raise UnsupportedParameter("this model's engine shares prefixes with everybody")

    # ── conversations ──

    def _conversation(self, request: Generate, prompt: Messages) -> Prepared:
        if request.tool_choice.mode == "none":
            prompt = msgspec.structs.replace(prompt, tools=None)
        markers = Markers(prompt) if prompt.media else None
        text = self._template.render(markers.prompt if markers else prompt)
        if request.reasoning_budget == 0 and (closing := reasoning.opened(self._form, text)):
            if markers is not None:
                raise UnsupportedParameter(
                    "with images this model's reasoning cannot be switched off",
                    param="reasoning_budget",
                )
            text += closing
        tokens = self._texts.tokenize(
            self._guard.split(text), "messages", wrap=self._texts.wraps(text)
        )
        made = output.Output(
            request.stop,
            form=self._form,
            prompt=text,
            continued=prompt.continue_last,
            tools=prompt.tools,
            choice=request.tool_choice,
        )
        prepared = self._begin(request, tokens, made)
        prepared = self._constrained(request, prepared, self._form, text)
        if markers is None:
            return prepared
        if not self._settings.images:
            raise InvalidRequest("this model reads text only", param="messages")
        if "response_format" in prepared.config:
            # LMDeploy leaves the grammar with the next request where an image fails in between
            raise UnsupportedParameter(
                "this model's engine cannot constrain an answer about images",
                param="response_format",
            )
        return prepared._replace(
            messages=images.messages_of(prompt, self._guard),
            tools=prompt.tools,
            template_kwargs=prompt.template_kwargs,
        )

    def _begin(self, request: Generate, tokens: list[int], made: output.Output) -> Prepared:
        """Return what a generation after these tokens needs, whatever they stand for."""
        tokens = self._texts.begin(tokens, _param(request))
        self._texts.check(request.stop_tokens, "stop_token_ids")
        ends = self.vocab.ends
        own_ends = frozenset() if request.sampling.ignore_eos else ends
        return Prepared(
            tokens=tokens,
            config=sampling.fields(request, room=self._context - len(tokens), ends=ends),
            output=made,
            ends=own_ends.union(request.stop_tokens),
            likelihoods=request.logprobs,
        )

    def _constrained(
        self, request: Generate, prepared: Prepared, form: output.Format | None, text: str
    ) -> Prepared:
        wanted = constraints.response_format(request, form, text)
        if wanted is None:
            return prepared
        if not self._settings.grammars:
            param = constraints.param_of(request.constraint) if request.constraint else "tools"
            raise UnsupportedParameter(
                "on several GPUs this model's engine constrains no answers (they are known to "
                "crash it); leave the format, the demanded call and `strict` out",
                param=param,
            )
        enforced = request.tool_choice.mode == "required" and request.constraint is None
        return prepared._replace(
            config=prepared.config | {"response_format": wanted}, enforced=enforced
        )

    # ── tokens ──

    def call(self, request: Tokenize | Detokenize | Render) -> Tokenized | Detokenized | Rendered:
        """Answer what the vocabulary and the template alone can answer."""
        if isinstance(request, Render):
            markers = Markers(request.prompt) if request.prompt.media else None
            text = self._template.render(markers.prompt if markers else request.prompt)
            parts = list(self._guard.split(text))
            tokens = self.vocab.tokenize(parts, wrap=self._texts.wraps(text))
            plain = self._guard.unmark(text)
            return Rendered(request.id, markers.shown(plain) if markers else plain, len(tokens))
        if isinstance(request, Tokenize):
            return self.vocab.tokenized(request)
        self._texts.check(request.tokens, "tokens")
        return self.vocab.detokenized(request)


def _param(request: Generate) -> str:
    return "messages" if isinstance(request.prompt, Messages) else "prompt"
