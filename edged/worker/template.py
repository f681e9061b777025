"""Chat templates: messages in, prompt text out, the way Hugging Face renders them.

The template is the model's own Jinja program, taken from its file: foreign code, so it runs in
the immutable sandbox and sees nothing but the request. What it refuses (`raise_exception`) or
cannot digest becomes a 400 with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from edged.errors import InvalidRequest
from edged.protocol import Messages
from edged.worker.guard import Guard

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_NO_TEMPLATE = (
    "this model has no chat template, so it cannot hold a conversation; use /v1/completions"
)
_PROBE = "edged-probe"


class Template:
    """One model's compiled chat template. Rendering is safe from any thread."""

    def __init__(
        self,
        source: str | None,
        *,
        bos: str = "",
        eos: str = "",
        chatml: bool = False,
        guard: Guard | None = None,
    ) -> None:
        """`source`: the file's template; `chatml`: the vocabulary has ChatML's tokens."""
        self._guard = guard or Guard(())
        self._special = {"bos_token": bos, "eos_token": eos}
        self._problem: str | None = None
        self._template: jinja2.Template | None = None
        self._source = source if source is not None else CHATML if chatml else None
        self._takes_text = self._takes_parts = False
        if self._source is None:
            self._problem = _NO_TEMPLATE
            return
        try:
            self._template = _ENVIRONMENT.from_string(self._source)
        except jinja2.TemplateError as error:
            self._problem = (
                f"the model's chat template cannot be compiled ({error}); use /v1/completions"
            )
            return
        self._takes_text = self._shows(_PROBE)
        self._takes_parts = self._shows([{"type": "text", "text": _PROBE}])

    @property
    def usable(self) -> bool:
        """The model can hold a conversation."""
        return self._template is not None

    def render(self, prompt: Messages) -> str:
        """Return the prompt text, the client's control tokens marked (`Guard.split`).

        Raises InvalidRequest with what the template refuses.
        """
        if self._template is None:
            raise InvalidRequest(self._problem or _NO_TEMPLATE, param="messages")
        messages = [self._prepare(m, i) for i, m in enumerate(prompt.messages)]
        try:
            mark = self._guard.mark
            return self._run(mark(messages), mark(prompt.tools), mark(prompt.template_kwargs))
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        except (AttributeError, RecursionError) as error:
            raise InvalidRequest(
                f"the model's chat template cannot digest these messages: {error}",
                param="messages",
            ) from error

    def _run(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        kwargs: dict[str, Any],
    ) -> str:
        assert self._template is not None
        variables = {"add_generation_prompt": True} | self._special | kwargs
        return self._template.render(variables, messages=messages, tools=tools)

    def _shows(self, content: Any) -> bool:
        """Try whether the template prints this kind of content as a reader would want it."""
        try:
            text = self._run([{"role": "user", "content": content}], None, {})
        except Exception:  # noqa: BLE001 - any failure of foreign code is the answer "no"
            return False
        return _PROBE in text and "'type'" not in text and '"type"' not in text

    def _prepare(self, message: dict[str, Any], at: int) -> dict[str, Any]:
        """Bring an OpenAI message into the shape that this template reads."""
        message = dict(message)
        content = message.get("content")
        if isinstance(content, list):
            texts = [_text_of(part, f"messages.{at}.content.{i}") for i, part in enumerate(content)]
            if self._takes_text or not self._takes_parts:
                message["content"] = "".join(texts)
        elif isinstance(content, str) and self._takes_parts and not self._takes_text:
            message["content"] = [{"type": "text", "text": content}]
        elif content is None:
            message["content"] = ""
        if message.get("role") == "developer" and "developer" not in (self._source or ""):
            message["role"] = "system"
        if message.get("tool_calls"):
            message["tool_calls"] = [_with_object_arguments(call) for call in message["tool_calls"]]
        return message


def _text_of(part: Any, param: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        raise InvalidRequest(f"this model reads text parts only, not {kind!r}", param=param)
    text: str = part["text"]
    return text


def _with_object_arguments(call: Any) -> Any:
    """Templates expect the arguments as an object; OpenAI's wire carries them as JSON text."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    arguments = call["function"].get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return call
    if not isinstance(parsed, dict):
        return call
    return call | {"function": call["function"] | {"arguments": parsed}}


# ── the environment, as transformers builds it ──


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks training targets; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the body as it stands."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which models have never seen in training.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    functions: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    environment.globals.update(functions)
    return environment


_ENVIRONMENT = _environment()
