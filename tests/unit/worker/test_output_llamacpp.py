"""The same answers read as llama.cpp's own chat parsers read them: its tests are the reference."""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from edged.worker.output import SHOWN_TOKENS, find
from tests.models.cache import UnavailableError
from tests.models.source import llama_cpp_source
from tests.unit.worker.calls import Answer, cut_at, read
from tests.unit.worker.llamacpp_answers import Case, Message, expected, tools_of
from tests.unit.worker.llamacpp_answers import read as read_cases
from tests.unit.worker.test_output_formats import TEMPLATES


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return llama_cpp_source() / "vendor/llama.cpp"
    except UnavailableError as error:
        pytest.skip(str(error))


@functools.cache
def cases(path: Path) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = defaultdict(list)
    for case in read_cases(path):
        if comparable(case):
            found[case.template].append(case)
    return found


def comparable(case: Case) -> bool:  # noqa: PLR0911 - one for each reason
    """Return whether it is an answer of a family in the table, read with reasoning apart."""
    if case.template not in TEMPLATES or case.template in OTHERWISE:
        return False
    if {"continue_final_message", "json_schema"} & set(case.options):
        return False  # the prompt is another one; JSON is taken out of its fences there
    if not isinstance(case.options.get("expect", [Message()])[0], Message):
        return False  # put together from variables
    wanted = expected(case)
    if "<think>" in wanted.reasoning:
        return False  # OTHERWISE["again"]
    if " to=" in case.answer and not wanted.calls:
        return False  # OTHERWISE["unknown"]
    way = case.options.get("reasoning_format", [""])[0]
    if way:
        return way.endswith(("AUTO", "DEEPSEEK"))
    form = find(None, TEMPLATES[case.template][0])
    tagged = any(m.opening in case.answer or m.closing in case.answer for m in form.markers)
    return not tagged and not wanted.reasoning


# Where edged reads otherwise, and why.
OTHERWISE = {
    "Apriel-1.6-15b-Thinker-fixed": "the sentence that opens the reasoning is its tag, not a part",
    "partial": "a call of which only the name came before the end is text: it has no arguments",
    "again": "a model that opens the reasoning that is open already has not thought of a tag",
    "unknown": "a call of a tool that is not the request's is text, not dropped",
}
# Templates of the table of which llama.cpp has no answer, or none that can be compared.
UNSEEN = {
    "Apriel-1.6-15b-Thinker-fixed",
    "Bielik-11B-v3.0-Instruct",
    "HuggingFaceTB-SmolLM3-3B",
    "LFM2-8B-A1B",
    "LFM2.5-Instruct",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "microsoft-Phi-3.5-mini-instruct",
}


@pytest.mark.parametrize("template", sorted(TEMPLATES.keys() - UNSEEN))
def test_answers_are_read_as_llamacpp_reads_them(folder: Path, template: str) -> None:
    form = find((folder / f"models/templates/{template}.jinja").read_text())
    answers = cases(folder / "tests/test-chat.cpp")[template]
    assert answers
    for case in answers:
        wanted = expected(case)
        prompt = form.given
        marker = form.thinks
        if marker and wanted.reasoning and not case.answer.lstrip().startswith(marker.opening):
            prompt = marker.opening  # the template's generation prompt opens it
        # Other control tokens never become text.
        shown = re.sub(r"<\|[A-Z_]+\|>", lambda t: t[0] * (t[0] in SHOWN_TOKENS), case.answer)
        data = shown.encode()
        cut = case.options.get("is_partial") == ["true"]
        arguments: dict[str, Any] = {"tools": tools_of(case), "prompt": prompt, "cut": cut}
        answer = read(form, [data], **arguments)
        compare(answer, wanted, case, cut=cut)
        apart = read(form, cut_at(data, range(len(data))), **arguments)
        assert apart.known() == answer.known()


def test_most_of_llamacpps_answers_are_compared(folder: Path) -> None:
    found = cases(folder / "tests/test-chat.cpp")
    assert sum(len(answers) for answers in found.values()) > 190


def compare(answer: Answer, wanted: Message, case: Case, *, cut: bool) -> None:
    if cut and wanted.calls and not wanted.calls[-1][1] and not answer.calls:
        return  # OTHERWISE["partial"]
    assert answer.content.strip() == wanted.content.strip(), case
    assert answer.reasoning.strip() == wanted.reasoning.strip(), case
    assert len(answer.calls) == len(wanted.calls), case
    for (name, arguments), (name_there, arguments_there, _) in zip(
        answer.calls, wanted.calls, strict=True
    ):
        assert name == name_there, case
        if cut:
            assert arguments.replace(" ", "").startswith(arguments_there.replace(" ", "")), case
        else:
            assert json.loads(arguments) == json.loads(arguments_there or "{}"), case
