"""Conversations → token ids, through the very chat template that ships in the GGUF."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

END = "<|im_end|>"
TEMPLATE_PATH = Path(__file__).with_name("chat_template.jinja")
PAST_ANSWER = re.compile(
    r"(?<=<\|im_start\|>assistant\n<think>\n\n</think>\n\n)(.*?<\|im_end\|>)", re.DOTALL
)


def _tojson(value: Any, indent: int | None = None) -> str:
    """Hugging Face's `tojson`: key order kept, nothing escaped."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


_environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701
_environment.filters["tojson"] = _tojson
_template = _environment.from_string(TEMPLATE_PATH.read_text(encoding="utf-8"))


@dataclass
class Example:
    """One conversation that ends before the assistant's turn, and that turn."""

    kind: str
    messages: list[dict[str, Any]]
    answer: str
    tools: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool = False


def prompt(example: Example) -> str:
    """The text a model sees before it answers."""
    return _template.render(
        messages=example.messages,
        tools=example.tools or None,
        add_generation_prompt=True,
        enable_thinking=example.thinking,
    )


def encode(tokenizer: Tokenizer, example: Example) -> tuple[list[int], list[bool]]:
    """Token ids, and for each whether the model should learn to say it (assistant turns only)."""
    text = prompt(example)
    pieces: list[tuple[str, bool]] = []
    position = 0
    # With thinking on, past turns carry empty thoughts that the model must not learn to write.
    for match in () if example.thinking else PAST_ANSWER.finditer(text):
        pieces += [(text[position : match.start()], False), (match.group(), True)]
        position = match.end()
    pieces += [(text[position:], False), (example.answer + END, True)]
    ids: list[int] = []
    learn: list[bool] = []
    for piece, wanted in pieces:
        more = tokenizer.encode(piece, add_special_tokens=False).ids
        ids += more
        learn += [wanted] * len(more)
    return ids, learn
