# ruff: noqa: RUF001 - DeepSeek's tags are written with full-width bars
"""Calls written by hand, as the models of each family write them, and tools to call."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from edged.worker.output import Format


class Written(NamedTuple):
    """One call, and what stands around and between several.

    `{}` is for the arguments, `@` for the number of the call.
    """

    call: str
    between: str = ""
    before: str = ""
    after: str = ""


def _json(name: str = "name", arguments: str = "arguments", more: str = "") -> str:
    return f'{{{{"{name}": "get_weather", "{arguments}": {{}}{more}}}}}'


FAMILIES = {
    "gpt-oss": Written(
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{}",
        "<|call|><|start|>assistant",
        after="<|call|>",
    ),
    "mistral-call-id": Written("[TOOL_CALLS]get_weather[CALL_ID]abcDEF12@[ARGS]{}"),
    "mistral": Written("[TOOL_CALLS]get_weather[ARGS]{}"),
    "mistral-list": Written(_json(more=', "id": "abcDEF12@"'), ", ", "[TOOL_CALLS][", "]"),
    "functionary-v3.2": Written(">>>get_weather\n{}", "\n"),
    "kimi-k2": Written(
        "<|tool_call_begin|>functions.get_weather:@<|tool_call_argument_begin|>{}<|tool_call_end|>",
        before="<|tool_calls_section_begin|>",
        after="<|tool_calls_section_end|>",
    ),
    "deepseek-v3": Written(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{}\n```<｜tool▁call▁end｜>",
        "\n",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
    ),
    "deepseek-v3.1": Written(
        "<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        "",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
    ),
    "command-r7b": Written(
        '{{"tool_call_id": "@", "tool_name": "get_weather", "parameters": {}}}',
        ",\n    ",
        "<|START_ACTION|>[\n    ",
        "\n]<|END_ACTION|>",
    ),
    "command-r": Written(_json("tool_name", "parameters"), ",\n", "Action:\n```json\n[", "]\n```"),
    "functionary-v3.1": Written("<function=get_weather>{}</function>", "\n"),
    "nemotron": Written(_json(), ", ", "<TOOLCALL>[", "]</TOOLCALL>"),
    "apriel": Written(_json(), ", ", "<tool_calls>[", "]</tool_calls>"),
    "granite": Written(_json(), ", ", "<|tool_call|>[", "]"),
    "phi-4": Written(_json(), ", ", "<|tool_call|>[", "]<|/tool_call|>"),
    "firefunction": Written(_json(), ", ", "functools[", "]"),
    "hermes": Written(f"<tool_call>\n{_json()}\n</tool_call>", "\n"),
    "generic": Written(f"<tool_call>\n{_json()}\n</tool_call>", "\n"),
    "llama3": Written(_json(arguments="parameters"), "; "),
    "lfm2": Written("get_weather({})", ", ", "<|tool_call_start|>[", "]<|tool_call_end|>"),
    "minicpm3": Written(
        "get_weather({})",
        "\n",
        "<|tool_call_start|>\n```python\n",
        "\n```\n<|tool_call_end|>",
    ),
    "minicpm": Written('<function name="get_weather">{}</function>'),
    "seed-oss": Written(
        "<seed:tool_call>\n<function=get_weather>\n{}</function>\n</seed:tool_call>", "\n"
    ),
    "minimax-m2": Written(
        '<invoke name="get_weather">\n{}</invoke>\n',
        before="<minimax:tool_call>\n",
        after="</minimax:tool_call>",
    ),
    "glm-4.5": Written("<tool_call>get_weather\n{}</tool_call>", "\n"),
    "qwen3-coder": Written(
        "<tool_call>\n<function=get_weather>\n{}</function>\n</tool_call>", "\n"
    ),
}
PARAMETERS = {
    "minicpm": '<param name="{}">{}</param>',
    "seed-oss": "<parameter={}>{}</parameter>\n",
    "minimax-m2": '<parameter name="{}">{}</parameter>\n',
    "glm-4.5": "<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>\n",
    "qwen3-coder": "<parameter={}>\n{}\n</parameter>\n",
}
PYTHON = {"lfm2", "minicpm3"}


def written(form: Format, calls: list[dict[str, Any]]) -> str:
    """Return calls of get_weather in the family's syntax."""
    family = FAMILIES[form.name]
    texts = []
    for n, arguments in enumerate(calls):
        if form.name in PARAMETERS:
            inside = "".join(
                PARAMETERS[form.name].format(k, v if isinstance(v, str) else json.dumps(v))
                for k, v in arguments.items()
            )
        elif form.name in PYTHON:
            inside = ", ".join(
                f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in arguments.items()
            )
        else:
            inside = json.dumps(arguments, ensure_ascii=False)
        texts.append(family.call.replace("@", str(n)).format(inside))
    return family.before + family.between.join(texts) + family.after


def tool(name: str, properties: dict[str, Any], required: list[str], **more: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters | more}}


WEATHER = tool(
    "get_weather",
    {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 16},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    ["city"],
)
EVERYTHING = tool(
    "every-thing_2",
    {
        "on": {"type": "boolean"},
        "size": {"type": "number"},
        "code": {"type": "string", "minLength": 1, "maxLength": 6},
        "word": {"type": "string", "pattern": "^[a-z]{2,4}$"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 3},
        "place": {"$ref": "#/$defs/place"},
        "maybe": {"type": ["string", "null"]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "null"}}]},
    },
    ["on", "tags", "place"],
    **{
        "$defs": {
            "place": {
                "type": "object",
                "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
                "required": ["x", "y"],
                "additionalProperties": False,
            }
        }
    },
)
NOTHING = tool("nothing", {}, [])
TOOLS = [WEATHER, EVERYTHING, NOTHING]
