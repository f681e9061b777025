"""Chat templates: messages in, prompt text out, the way Hugging Face renders them.

The template is the model's own Jinja program, taken from its file; some files carry a set of
them. It runs in a sandbox (`environment.py`) on messages in one form (`messages.py`);
what it can render was tried when the model was loaded (`traits.py`), and what it cannot is
said in another way (`repair.py`). What it refuses even so becomes a 400 with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.meta
import msgspec

from edged.errors import InvalidRequest
from edged.protocol import Messages
from edged.worker.guard import Guard
from edged.worker.template.environment import ENVIRONMENT, render
from edged.worker.template.messages import (
    Message,
    checked_documents,
    checked_tools,
    normal_form,
    text_of,
)
from edged.worker.template.repair import repair, with_descriptions
from edged.worker.template.traits import Traits, probe, tool_variables

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
DEFAULT, TOOL_USE, RAG = "default", "tool_use", "rag"  # names in a set, as transformers has them
_NO_TEMPLATE = (
    "this model has no chat template, so it cannot hold a conversation; use /v1/completions"
)
# What clients send → what other templates call it. It is passed on under the name that is read.
_OTHER_NAMES = {
    "enable_thinking": ("thinking",),
    "reasoning_effort": ("reasoning_strength", "thinking_effort"),
}
_OURS = ("messages", "tools", "documents")
_END = "\ufdd1edged-end"  # no text means anything by it
# Gemma 4 leaves the model's turn open after a tool's result, and does so even where it closed it.
_GEMMA = ("<turn|>\n", "<|turn>model\n")
_PROBE_LIMIT_S = 0.2  # of each of the renderings at load; they take a millisecond
_FAILURES = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
)


class Template:
    """One model's compiled chat templates. Rendering is safe from any thread."""

    def __init__(
        self,
        source: str | Mapping[str, str] | None,
        *,
        bos: str = "",
        eos: str = "",
        chatml: bool = False,
        guard: Guard | None = None,
    ) -> None:
        """`source`: the file's template, or its set of them by name ("default", "tool_use" …).

        `chatml`: the vocabulary has ChatML's tokens, which stands in for a missing template.
        """
        self._guard = guard or Guard(())
        self._special = {"bos_token": bos, "eos_token": eos}
        self._problem = _NO_TEMPLATE
        sources = {DEFAULT: source} if isinstance(source, str) else dict(source or {})
        if not sources and chatml:
            sources = {DEFAULT: CHATML}
        self._set: dict[str, _Program] = {}
        for name, text in sources.items():
            try:
                self._set[name] = _Program(text, self._special)
            except (jinja2.TemplateError, RecursionError, MemoryError) as error:
                self._problem = (
                    f"the model's chat template cannot be compiled ({error}); use /v1/completions"
                )

    @property
    def usable(self) -> bool:
        """The model can hold a conversation."""
        return bool(self._set)

    @property
    def source(self) -> str | None:
        """The template that a request with tools gets: it shows how calls are written."""
        return self._program(tools=True, documents=False).source if self._set else None

    @property
    def supports_tools(self) -> bool:
        r"""The template shows tools itself.

        Where it does not, the prompt describes them and asks for calls as Hermes models write
        them: `<tool_call>\n{"name": …, "arguments": …}\n</tool_call>`.
        """
        return (
            bool(self._set) and self._program(tools=True, documents=False).traits.tools is not None
        )

    def render(self, prompt: Messages) -> str:
        """Return the prompt text, the client's control tokens marked (`Guard.split`).

        Raises InvalidRequest with what the template refuses.
        """
        if not self._set:
            raise InvalidRequest(self._problem, param="messages")
        program = self._program(tools=bool(prompt.tools), documents=bool(prompt.documents))
        try:
            variables = {"add_generation_prompt": True} | self._special | self._settings(prompt)
            messages = normal_form(prompt.messages, self._guard)
            tools = checked_tools(prompt.tools, self._guard)
            if prompt.documents:
                variables["documents"] = checked_documents(prompt.documents, self._guard)
        except RecursionError:
            raise InvalidRequest("a value is nested too deeply", param="messages") from None
        if prompt.documents and program.traits.documents is None:
            raise InvalidRequest(
                "the model's chat template has no place for `documents`; put them into a message",
                param="documents",
            )
        if not prompt.continue_last:
            return program.run(messages, tools, variables)
        variables["add_generation_prompt"] = False
        _mark_end(messages[-1], len(messages) - 1)
        return _until_end(program.run(messages, tools, variables))

    def _settings(self, prompt: Messages) -> dict[str, Any]:
        for name in _OURS:
            if name in prompt.template_kwargs:
                raise InvalidRequest(
                    f"`chat_template_kwargs.{name}` is no setting of a template; "
                    f"send `{name}` in the request itself",
                    param=f"chat_template_kwargs.{name}",
                )
        return dict(self._guard.mark(prompt.template_kwargs))

    def _program(self, *, tools: bool, documents: bool) -> _Program:
        wanted = [TOOL_USE] * tools + [RAG] * documents + [DEFAULT]
        found = (self._set[name] for name in wanted if name in self._set)
        return next(found, None) or next(iter(self._set.values()))


class _Program:
    """One template with its traits."""

    def __init__(self, source: str, special: dict[str, Any]) -> None:
        self.source = source
        self._template = ENVIRONMENT.from_string(source)
        read = jinja2.meta.find_undeclared_variables(ENVIRONMENT.parse(source))
        self._renamed = [
            (name, other)
            for name, others in _OTHER_NAMES.items()
            for other in others
            if other in read and name not in read
        ]
        self.traits: Traits = probe(
            lambda variables: render(
                self._template, self._clock() | special | variables, _PROBE_LIMIT_S
            ),
            source,
        )

    def run(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        variables: dict[str, Any],
    ) -> str:
        """Return the prompt; raises InvalidRequest with what the template refuses."""
        variables = self._clock() | variables
        for name, other in self._renamed:
            if name in variables:
                variables.setdefault(other, variables[name])
        text = self._tell(messages, tools, variables, self.traits)
        if self.traits.system and _drops_system(messages[0], text):
            # In this conversation only: Mistral's say it before a last turn of the user alone.
            without = {
                "text": self.traits.text - {"system"},
                "parts": self.traits.parts - {"system"},
            }
            traits = msgspec.structs.replace(self.traits, **without)
            text = self._tell(messages, tools, variables, traits)
        return text

    def _tell(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        variables: dict[str, Any],
        traits: Traits,
    ) -> str:
        try:
            told, shown = repair(messages, tools, traits, self.source)
            if not tools and "documents" in variables:
                shown = traits.documents or shown
            variables = variables | shown | {"messages": told}
            text = render(self._template, variables)
        except _FAILURES as error:
            if not tools or not traits.tools:
                raise _refused(error) from error
            try:
                full = [with_descriptions(tool) for tool in tools]  # which many count on
                text = render(self._template, variables | tool_variables(traits.tools, full))
            except _FAILURES:
                raise _refused(error) from error
        if text.endswith(_GEMMA[0]) and variables["add_generation_prompt"] is True:
            return text + _GEMMA[1]
        return text

    @staticmethod
    def _clock() -> dict[str, Any]:
        # firefunction's template wants it, as llama-server gives it; others ask `strftime_now`
        return {"datetime": datetime.now().strftime("%b %d %Y")}  # noqa: DTZ005 - the box's time


def _refused(error: Exception) -> InvalidRequest:
    reason = str(error) or type(error).__name__
    return InvalidRequest(
        f"the model's chat template refuses these messages: {reason:.500}", param="messages"
    )


def _drops_system(message: Message, text: str) -> bool:
    """Tell whether a system message does not show; its longest word stands for it."""
    if message["role"] != "system":
        return False
    words = re.findall(r"\w+", text_of(message["content"]))  # which survive being quoted
    return bool(words) and max(words, key=len) not in text


# ── going on with the last message ──


def _mark_end(message: Message, at: int) -> None:
    """Mark where the assistant's last message ends, so that the prompt can end there."""
    where = f"messages[{at}]"
    if message["role"] != "assistant" or "tool_calls" in message:
        raise InvalidRequest(
            "only a last message of the assistant without tool calls can be continued", param=where
        )
    content = message["content"]
    if not content and "reasoning_content" in message:
        message["reasoning_content"] += _END + " "
    elif isinstance(content, list):
        message["content"] = [*content, {"type": "text", "text": ""}][: max(len(content), 1)]
        message["content"][-1] = {
            "type": "text",
            "text": message["content"][-1]["text"] + _END + " ",
        }
    else:
        message["content"] = content + _END + " "


def _until_end(text: str) -> str:
    at = text.rfind(_END)
    if at < 0:
        raise InvalidRequest(
            "the model's chat template cannot go on with the assistant's last message: "
            "it does not show this message as it stands",
            param="messages",
        )
    before = text[:at]
    # Where the template trims what is said, the space after the mark is gone: trim as it does.
    return before if text.startswith(" ", at + len(_END)) else before.rstrip()
