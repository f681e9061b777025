# ruff: noqa: RUF001 - DeepSeek's tags are written with full-width bars
"""The table: one row a family of models, found from the chat template's source.

The facts are those of the published templates and of llama.cpp's parsers (`common/chat.cpp`,
`common/parsers/`). The names are the values of `output_format` in models.toml
(`edged/config/keys.py`).
"""

from __future__ import annotations

import re

import msgspec

from edged.worker.output.syntax import (
    MARKERS,
    Format,
    Harmony,
    Marker,
    Named,
    Objects,
    Parameters,
    Pythonic,
    tags,
)

HERMES = Objects("<tool_call>", "</tool_call>", before="\n", after="\n")
_MISTRAL = Named("[TOOL_CALLS]", "[ARGS]", id="[CALL_ID]")
_MISTRAL_LIST = Objects("[TOOL_CALLS]", listed=True, id="id", id_last=True)
_FUNCTOOLS = Objects("functools", listed=True)
_QWEN3_CODER = Parameters(
    "<tool_call>",
    "<function=",
    ">",
    "<parameter=",
    ">",
    "</parameter>",
    "</function>",
    "</tool_call>",
    pad="\n",
)
_DEEPSEEK_V3 = Named(
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    "\n```json\n",
    "\n```<｜tool▁call▁end｜>",
    opening="<｜tool▁calls▁begin｜>",
    closing="<｜tool▁calls▁end｜>",
)
_KIMI = Named(
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    opening="<|tool_calls_section_begin|>",
    closing="<|tool_calls_section_end|>",
    prefix="functions.",
    number=":",
)

GENERIC = Format("generic", (HERMES,))

# The first row that fits is taken, so the more special ones stand first.
FORMATS = (
    Format("gpt-oss", (Harmony(),), (("<|channel|>", "<|message|>"),)),
    Format(
        "mistral-call-id",
        (msgspec.structs.replace(_MISTRAL, writes_id=True), _MISTRAL_LIST),
        (("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),),
        id_length=9,
    ),
    Format("mistral", (_MISTRAL, _MISTRAL_LIST), (("[TOOL_CALLS]", "[ARGS]"),), id_length=9),
    Format("mistral-list", (_MISTRAL_LIST, _MISTRAL), (("[TOOL_CALLS]",),), id_length=9),
    Format(
        "functionary-v3.2",
        (Named(">>>", "\n"),),
        ((">>>all",),),
        dropped=(">>>all\n",),
        given=">>>",
    ),
    Format(
        "kimi-k2",
        (_KIMI,),
        ((_KIMI.opening, _KIMI.call),),
        reasoning=(Marker("<think>", "</think>", ends=(_KIMI.opening, _KIMI.call)),),
    ),
    Format(
        "deepseek-v3",
        (_DEEPSEEK_V3,),
        ((_DEEPSEEK_V3.opening, "```json"),),
    ),
    Format(
        "deepseek-v3.1",
        (
            msgspec.structs.replace(
                _DEEPSEEK_V3,
                call="<｜tool▁call▁begin｜>",
                between="<｜tool▁sep｜>",
                end="<｜tool▁call▁end｜>",
            ),
        ),
        ((_DEEPSEEK_V3.opening,),),
    ),
    Format(
        "command-r7b",
        (
            Objects(
                "<|START_ACTION|>",
                "<|END_ACTION|>",
                listed=True,
                name="tool_name",
                arguments="parameters",
                id="tool_call_id",
            ),
        ),
        (("<|START_ACTION|>",),),
        reasoning=(
            Marker(
                "<|START_THINKING|>",
                "<|END_THINKING|>",
                ends=("<|START_RESPONSE|>", "<|START_TEXT|>", "<|START_ACTION|>"),
            ),
        ),
        dropped=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    Format(
        "command-r",
        (
            Objects(
                "Action:",
                "```",
                listed=True,
                name="tool_name",
                arguments="parameters",
                before="\n```json\n",
                after="\n",
            ),
        ),
        (("Action:", "tool_name"),),
    ),
    Format(
        "lfm2",
        (Pythonic("<|tool_call_start|>", "<|tool_call_end|>"),),
        (("<|tool_list_start|>",), ("List of tools: [",)),
    ),
    Format(
        "minicpm3",
        (
            Pythonic(
                "<|tool_call_start|>",
                "<|tool_call_end|>",
                before="\n```python\n",
                after="\n```\n",
                separator="\n",
            ),
        ),
        (("<|tool_call_start|>", "<|thought_start|>"),),
        reasoning=(Marker("<|thought_start|>", "<|thought_end|>"),),
    ),
    Format(
        "minicpm",
        (
            Parameters(
                "",
                '<function name="',
                '">',
                '<param name="',
                '">',
                "</param>",
                "</function>",
                line="",
                cdata=True,
            ),
        ),
        (('<function name="', '<param name="'),),
    ),
    Format(
        "seed-oss",
        (
            msgspec.structs.replace(
                _QWEN3_CODER, opening="<seed:tool_call>", closing="</seed:tool_call>", pad=""
            ),
        ),
        (("<seed:tool_call>",),),
        reasoning=(Marker("<seed:think>", "</seed:think>"),),
    ),
    Format(
        "minimax-m2",
        (
            Parameters(
                "<minimax:tool_call>",
                '<invoke name="',
                '">',
                '<parameter name="',
                '">',
                "</parameter>",
                "</invoke>",
                "</minimax:tool_call>",
            ),
        ),
        (("<minimax:tool_call>",),),
    ),
    Format(
        "glm-4.5",
        (
            Parameters(
                "<tool_call>",
                "",
                "",
                "<arg_key>",
                "</arg_key>\n<arg_value>",
                "</arg_value>",
                closing="</tool_call>",
            ),
        ),
        (("<arg_key>", "<tool_call>"),),
    ),
    Format(
        "qwen3-coder",
        (_QWEN3_CODER,),
        (("<tool_call>", "<function=", "<parameter="),),
        reasoning=(Marker("<think>", "</think>", ends=("<tool_call>\n<function=",)),),
    ),
    Format("functionary-v3.1", (Named("<function=", ">", "</function>"),), (("<function=",),)),
    Format("nemotron", (Objects("<TOOLCALL>", "</TOOLCALL>", listed=True),), (("<TOOLCALL>",),)),
    Format(
        "apriel",
        (Objects("<tool_calls>", "</tool_calls>", listed=True),),
        (("<tool_calls>", "[BEGIN FINAL RESPONSE]"), ("<tool_calls>[",)),
        reasoning=(Marker("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"),),
        around=("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"),
    ),
    Format(
        "granite",
        (Objects("<|tool_call|>", listed=True),),
        (("<|start_of_role|>", "<|tool_call|>"),),
        around=("<response>", "</response>"),
    ),
    Format(
        "phi-4",
        (Objects("<|tool_call|>", "<|/tool_call|>", listed=True), _FUNCTOOLS),
        (("<|tool|>", "<|/tool|>"), ("<|tool_call|>",)),
    ),
    Format("firefunction", (_FUNCTOOLS,), (("functools[",),)),
    Format("hermes", (HERMES,), (("<tool_call>",),)),
    Format(
        "llama3",
        (
            Objects("", arguments="parameters", separator="; "),
            Objects("<|python_tag|>", arguments="parameters", separator="; "),
        ),
        (("<|python_tag|>",), ("Environment: ipython",)),
    ),
    GENERIC,
)

_BY_NAME = {row.name: row for row in FORMATS}
_CHANNELS = frozenset(
    f"<|{word}|>" for word in ("channel", "constrain", "message", "start", "end", "call", "return")
)

# Control tokens whose text is a part of the answer; all others are silent.
SHOWN_TOKENS = frozenset().union(_CHANNELS, *map(tags, (*FORMATS, *MARKERS)))


def find(
    chat_template: str | None, output_format: str = "auto", *, shows_tools: bool | None = None
) -> Format:
    """Return the row of a chat template, or the one that models.toml names.

    A template that does not show tools has them described in the manner of Hermes, so its model is
    told that syntax; its own is read as well. `shows_tools` None: it does if it mentions them.
    Raises KeyError for a name that is no row.
    """
    source = chat_template or ""
    if output_format != "auto":
        row = _BY_NAME[output_format]
    else:
        row = next((row for row in FORMATS if _fits(row, source)), GENERIC)
        if shows_tools is None:
            shows_tools = bool(re.search(r"\btools\b", source))
        if not shows_tools and not isinstance(row.calls[0], Harmony):
            others = tuple(call for call in row.calls if call != HERMES)
            row = msgspec.structs.replace(row, calls=(HERMES, *others))
    thinks = next((m for m in row.markers if m.opening.strip() in source), None)
    return msgspec.structs.replace(row, thinks=thinks)


def _fits(row: Format, source: str) -> bool:
    return any(all(text in source for text in texts) for texts in row.template)
