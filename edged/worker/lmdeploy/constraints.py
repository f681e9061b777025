"""What an answer must look like, as LMDeploy's `response_format`.

Its grammars hold from the first token on, so what may come before the content (reasoning, the tag
of a call) is written into them as xgrammar's structural tags. Pure: what cannot be compiled is
found by LMDeploy before anything runs.
"""

from __future__ import annotations

import json
from typing import Any

from edged.errors import UnsupportedParameter
from edged.protocol import Constraint, Generate, JsonSchema, Messages, Regex
from edged.worker.output import Format, reasoning
from edged.worker.output.syntax import Harmony, Objects

_Json = dict[str, Any]


def response_format(request: Generate, form: Format | None, prompt: str) -> _Json | None:
    """Return the `response_format` of a request; None where the answer is free.

    `prompt` is the rendered one of a conversation with a model of family `form`. Raises
    UnsupportedParameter.
    """
    tools, choice = _tools(request), request.tool_choice
    constraint = request.constraint
    if constraint is not None:
        _check(constraint)
    demanded = bool(tools) and choice.mode == "required"
    strict = any(tool["function"].get("strict") for tool in tools)
    if constraint is None and not demanded and not strict:
        return None
    if form is None:
        assert constraint is not None
        return _plain(constraint)
    if isinstance(form.calls[0], Harmony):
        param = "tool_choice" if constraint is None else param_of(constraint)
        raise UnsupportedParameter(
            "this model writes its answers on channels, which LMDeploy's grammars cannot spell; "
            "leave the constraint out",
            param=param,
        )
    if not demanded and constraint is None:
        return _tagged(_watched(_calls(tools, request, form), form))
    answers = []
    if constraint is not None and not demanded:
        answers.append(_content(constraint))
    if tools:
        answers.append(_demanded(_calls(tools, request, form), request))
    answer = answers[0] if len(answers) == 1 else {"type": "or", "elements": answers}
    thoughts = _thoughts(form, prompt, forbidden=request.reasoning_budget == 0)
    if thoughts is None and constraint is not None and not tools:
        return _plain(constraint)
    return _tagged(_after(thoughts, answer, is_open=reasoning.opened(form, prompt) is not None))


def param_of(constraint: Constraint) -> str:
    """Return the request's field that a constraint comes from."""
    return "response_format" if isinstance(constraint, JsonSchema) else "grammar"


def _check(constraint: Constraint) -> None:
    if not isinstance(constraint, JsonSchema | Regex):
        raise UnsupportedParameter(
            "this model's engine (LMDeploy) reads no grammars in GBNF or Lark; "
            "give a JSON schema or a regular expression",
            param="grammar",
        )


def _plain(constraint: Constraint) -> _Json:
    if isinstance(constraint, JsonSchema):
        return {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": constraint.schema},
        }
    assert isinstance(constraint, Regex)
    return {"type": "regex_schema", "regex_schema": constraint.pattern}


def _content(constraint: Constraint) -> _Json:
    if isinstance(constraint, JsonSchema):
        return {"type": "json_schema", "json_schema": constraint.schema}
    assert isinstance(constraint, Regex)
    return {"type": "regex", "pattern": constraint.pattern}


def _tagged(structure: _Json) -> _Json:
    return {"type": "structural_tag", "format": structure}


def _thoughts(form: Format, prompt: str, *, forbidden: bool) -> _Json | None:
    """Return the block of reasoning that may come first."""
    closing = reasoning.opened(form, prompt)
    if closing is not None:
        return {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": closing}
    if form.thinks is None or forbidden or reasoning.closed(form, prompt):
        return None
    return {
        "type": "tag",
        "begin": form.thinks.opening,
        "content": {"type": "any_text"},
        "end": form.thinks.closing,
    }


def _after(thoughts: _Json | None, answer: _Json, *, is_open: bool) -> _Json:
    if thoughts is None:
        return answer
    first = thoughts if is_open else {"type": "optional", "content": thoughts}
    return {"type": "sequence", "elements": [first, answer]}


def _tools(request: Generate) -> list[_Json]:
    if not isinstance(request.prompt, Messages) or request.tool_choice.mode == "none":
        return []
    return request.prompt.tools or []


def _calls(tools: list[_Json], request: Generate, form: Format) -> list[_Json]:
    """Return a tag for each tool that may be called."""
    syntax = form.calls[0]
    if not isinstance(syntax, Objects) or syntax.listed or syntax.id or not syntax.opening:
        raise UnsupportedParameter(
            f"calls of the family {form.name!r} cannot be demanded of LMDeploy's engine; "
            'send tool_choice "auto" and tools that are not strict',
            param="tool_choice",
        )
    allowed = request.tool_choice.names
    functions = [tool["function"] for tool in tools]
    return [
        {
            "type": "tag",
            "begin": f"{_begin(syntax)}{json.dumps(function['name'], ensure_ascii=False)}, "
            f'"{syntax.arguments}": ',
            "content": {
                "type": "json_schema",
                "json_schema": function.get("parameters") or {"type": "object"},
            },
            "end": f"}}{syntax.after}{syntax.closing}",
        }
        for function in functions
        if not allowed or function["name"] in allowed
    ]


def _begin(syntax: Objects) -> str:
    return f'{syntax.opening}{syntax.before}{{"{syntax.name}": '


def _demanded(tags: list[_Json], request: Generate) -> _Json:
    return {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": "\n",
        "at_least_one": True,
        "stop_after_first": not request.tool_choice.parallel,
    }


def _watched(tags: list[_Json], form: Format) -> _Json:
    """Return free text in which what begins as a call has to be one."""
    syntax = form.calls[0]
    assert isinstance(syntax, Objects)
    return {"type": "triggered_tags", "triggers": [syntax.opening], "tags": tags}
