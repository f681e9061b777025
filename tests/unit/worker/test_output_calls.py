"""Tool calls of every family out of hand-written answers, however they are cut."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.protocol import ToolChoice
from edged.worker.output import FORMATS, Format, find
from tests.unit.worker.calls import Answer, cut_at, read
from tests.unit.worker.families import FAMILIES, TOOLS, written

ROWS = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
HERMES = find(None)

PLAIN = [{"city": "Paris", "days": 2}]
TWO = [{"city": "Zürich"}, {"city": "京都 🙂", "days": 1}]
NESTED = [{"city": 'a "b" \\ c\n\td', "unit": "celsius"}]
TRICKY = [{"city": "}]), ```  {[ <tool_call> <think> [TOOL_CALLS]", "days": 3}]
CALLS = [PLAIN, TWO, NESTED, TRICKY]
# Where an answer may say something first.
SPEAKING = [form for form in FORMATS if form.name not in {"llama3", "gpt-oss"}]


def head(form: Format, text: str) -> bytes:
    """Return an answer without what the prompt has already."""
    return text.removeprefix(form.given).encode()


def check_everywhere(form: Format, text: str, **more: object) -> Answer:
    """Read an answer whole, byte by byte and cut in two at every place; return what it says."""
    data = head(form, text)
    arguments = {"tools": TOOLS, "prompt": form.given} | more
    whole = read(form, [data], **arguments)  # type: ignore[arg-type]
    assert read(form, cut_at(data, range(len(data))), **arguments).known() == whole.known()  # type: ignore[arg-type]
    for place in range(len(data) + 1):
        apart = read(form, [data[:place], data[place:]], **arguments)  # type: ignore[arg-type]
        assert apart.known() == whole.known(), data[:place]
    return whole


def said(answer: Answer) -> list[dict[str, object]]:
    assert all(name == "get_weather" for name, _ in answer.calls)
    return [json.loads(arguments) for _, arguments in answer.calls]


@ROWS
@pytest.mark.parametrize("calls", CALLS, ids=["one", "two", "escapes", "tags"])
def test_calls_come_out_however_the_answer_is_cut(form: Format, calls: list) -> None:  # type: ignore[type-arg]
    answer = check_everywhere(form, written(form, calls))
    assert said(answer) == calls
    assert (answer.content, answer.reasoning) == ("", "")
    assert answer.called
    data = head(form, written(form, calls))
    streamed = read(
        form, cut_at(data, range(len(data))), tools=TOOLS, prompt=form.given, enforced=True
    )
    assert streamed.known() == answer.known()


@pytest.mark.parametrize("form", SPEAKING, ids=lambda form: form.name)
def test_text_before_the_calls_is_content(form: Format) -> None:
    speech = "Let me see: 1 < 2, [a] and {b} → `c`"
    opening = "all\n" if form.given else ""
    text = f"{form.given}{opening}{speech}\n\n{written(form, TWO)}"
    answer = check_everywhere(form, text)
    assert answer.content == speech
    assert said(answer) == TWO


@pytest.mark.parametrize("form", SPEAKING, ids=lambda form: form.name)
def test_reasoning_comes_before_content_and_calls(form: Format) -> None:
    if form.given:
        return  # Functionary does not reason
    marker = form.markers[0]
    thoughts = f"Should I?\n {written(form, PLAIN)}" if not marker.ends else "Should I?\n  Yes."
    text = f"{marker.opening}\n{thoughts}\n{marker.closing}\n\nI do.\n{written(form, PLAIN)}"
    answer = check_everywhere(form, text)
    assert answer.reasoning == thoughts.strip()
    assert answer.content == "I do."
    assert said(answer) == PLAIN


@ROWS
def test_without_tools_the_syntax_is_text(form: Format) -> None:
    text = written(form, PLAIN)
    for none in ({"tools": None}, {"choice": ToolChoice("none")}):
        answer = check_everywhere(form, text, **none)
        assert not answer.calls
        assert not answer.called
        expected = text.removeprefix(form.given).removesuffix("<|call|>")
        assert answer.content == expected


@ROWS
def test_call_of_an_unknown_tool_is_text(form: Format) -> None:
    text = written(form, PLAIN).replace("get_weather", "get_whether")
    answer = check_everywhere(form, text)
    assert not answer.calls
    assert answer.content == text.removeprefix(form.given).removesuffix("<|call|>")


@ROWS
def test_tool_that_the_choice_leaves_out_is_unknown(form: Format) -> None:
    answer = check_everywhere(form, written(form, PLAIN), choice=ToolChoice(names=["nothing"]))
    assert not answer.calls
    assert "get_weather" in answer.content


@ROWS
def test_without_parallel_the_first_call_ends_the_answer(form: Format) -> None:
    text = written(form, TWO)
    answer = check_everywhere(form, text, choice=ToolChoice(parallel=False))
    assert said(answer) == TWO[:1]
    assert answer.stopped
    assert answer.stop is None
    assert not answer.content


@ROWS
def test_answer_cut_off_anywhere_never_yields_a_wrong_call(form: Format) -> None:
    """At every place: whole calls before it, then a beginning of JSON, then nothing or text."""
    data = head(form, written(form, TWO))
    for place in range(len(data)):
        for cut in (True, False):
            answer = read(form, [data[:place]], tools=TOOLS, prompt=form.given, cut=cut)
            assert len(answer.calls) <= 2
            for n, (name, arguments) in enumerate(answer.calls):
                assert name == "get_weather"
                whole = json.dumps(TWO[n], ensure_ascii=False)
                assert whole.startswith(arguments)
                assert cut or arguments == whole, "only a cut may leave half a call"


@ROWS
def test_call_that_is_cut_off_is_handed_out_as_far_as_it_came(form: Format) -> None:
    text = written(form, [{"city": "Paris is the capital of France", "days": 1}])
    text = text[: text.index("capital")]
    answer = check_everywhere(form, text, cut=True)
    if form.name in {"lfm2", "minicpm3"}:  # a Python value is known at its end
        assert answer.calls == []
        assert "get_weather" in answer.content
        return
    (call,) = answer.calls
    assert call[0] == "get_weather"
    assert '{"city": "Paris is the '.startswith(call[1])
    assert len(call[1]) >= len('{"city": "Paris is the')
    assert answer.content == ""
    ended = check_everywhere(form, text, cut=False)
    assert ended.calls == []
    assert ended.content == text.removeprefix(form.given)


@ROWS
def test_ids_are_the_models_own_or_fresh(form: Format) -> None:
    answer = read(form, [head(form, written(form, TWO))], tools=TOOLS, prompt=form.given)
    own = {
        "kimi-k2": ["functions.get_weather:0", "functions.get_weather:1"],
        "command-r7b": ["0", "1"],
        "mistral-call-id": ["abcDEF120", "abcDEF121"],
        "mistral-list": ["abcDEF120", "abcDEF121"],
    }
    if form.name in own:
        assert answer.ids == own[form.name]
        return
    pattern = r"[a-zA-Z0-9]{9}" if form.name == "mistral" else r"call_[a-zA-Z0-9]{24}"
    assert all(re.fullmatch(pattern, call_id) for call_id in answer.ids)
    assert len(set(answer.ids)) == 2


@settings(max_examples=60)
@given(
    st.sampled_from(FORMATS),
    st.text(max_size=12),
    st.text(max_size=12),
    st.lists(st.integers(0, 400), max_size=20),
)
def test_any_text_and_any_value_survive_any_cut(
    form: Format, speech: str, city: str, places: list[int]
) -> None:
    """Values may be any text that the syntax can hold; what is said before is kept as it is."""
    if form.name in {"llama3", "gpt-oss", "functionary-v3.2"}:
        speech = ""
    city = re.sub(r"[<\]\r\n\x00-\x1f]", "", city)
    calls = [{"city": city, "days": 1}]
    data = head(form, speech + written(form, calls))
    answer = read(form, cut_at(data, places), tools=TOOLS, prompt=form.given)
    assert answer.known() == read(form, [data], tools=TOOLS, prompt=form.given).known()
    if form.name == "glm-4.5" or not re.search(r"[<\[`]|Action|functools", speech):
        assert said(answer) == calls
        assert answer.content.rstrip() == speech.rstrip()


def test_every_family_is_written_here() -> None:
    assert set(FAMILIES) == {form.name for form in FORMATS}
