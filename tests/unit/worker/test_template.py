from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.errors import InvalidRequest
from edged.protocol import Messages
from edged.worker.template import CHATML, Template

HELLO = [{"role": "user", "content": "Hi"}]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
]
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


def render(source: Any, messages: list[dict[str, Any]] = HELLO, **more: Any) -> str:
    options = {k: more.pop(k) for k in ("bos", "eos", "chatml") if k in more}
    return Template(source, **options).render(Messages(messages, **more))


def test_special_tokens_tools_and_kwargs_reach_the_template() -> None:
    source = (
        "{{ bos_token }}|{{ tools[0].function.name }}|{{ mood }}|{{ add_generation_prompt }}"
        "|{{ eos_token }}|{{ messages[0].content }}"
    )
    text = render(source, tools=[TOOL], template_kwargs={"mood": "x"}, bos="B", eos="E")
    assert text == "B|f|x|True|E|Hi"


def test_without_tools_a_template_gets_none_as_transformers_has_it() -> None:
    assert render("{{ tools is none }}{{ messages[0].content }}") == "TrueHi"


@pytest.mark.parametrize(
    "source",
    [
        "{% for t in tools %}{{ t.function.name }}{% endfor %}{{ messages[0].content }}",
        "{% if tools is not none %}{{ tools.x.y }}{% endif %}{{ messages[0].content }}",
    ],
)
def test_template_that_goes_through_no_tools_gets_an_empty_list_or_none(source: str) -> None:
    assert render(source) == "Hi"


def test_switches_reach_templates_that_call_them_otherwise() -> None:
    off = {"enable_thinking": False}
    assert render("{{ thinking }}{{ messages[0].content }}", template_kwargs=off) == "FalseHi"
    source = "{{ enable_thinking }}{{ thinking }}{{ messages[0].content }}"
    assert render(source, template_kwargs=off) == "FalseHi"
    effort = {"reasoning_effort": "low"}
    assert render("{{ thinking_effort }}{{ messages[0].content }}", template_kwargs=effort) == (
        "lowHi"
    )


@pytest.mark.parametrize("name", ["messages", "tools", "documents"])
def test_kwargs_that_would_replace_the_request_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(CHATML, template_kwargs={name: []})
    assert caught.value.param == f"chat_template_kwargs.{name}"


# ── refusals ──


def test_refusal_of_the_template_is_an_invalid_request_with_its_reason() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].nothing.at.all }}",
        "{{ 'x' + messages }}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 'a' * 10 ** 12 }}",
    ],
)
def test_any_failure_inside_the_template_is_an_invalid_request(source: str) -> None:
    with pytest.raises(InvalidRequest):
        render(source)


def test_no_template_means_completions_only() -> None:
    with pytest.raises(InvalidRequest, match="/v1/completions"):
        render(None)
    assert Template(None).source is None
    assert not Template(None).supports_tools


def test_template_that_does_not_compile_says_so_at_the_request() -> None:
    template = Template("{% if %}")
    assert not template.usable
    with pytest.raises(InvalidRequest, match="cannot be compiled"):
        template.render(Messages(HELLO))


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (["Hi"], "messages[0]"),
        ([{"content": "Hi"}], "messages[0].role"),
        ([*HELLO, {"role": "user", "content": 7}], "messages[1].content"),
        ([{"role": "user", "content": ["Hi"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ([{"role": "assistant", "tool_calls": {}}, *HELLO], None),
        ([{"role": "assistant", "tool_calls": "x"}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0]"),
    ],
)
def test_mistake_in_the_messages_is_named_by_its_place(messages: Any, param: str | None) -> None:
    template = Template(CHATML)
    if param is None:
        template.render(Messages(messages))
        return
    with pytest.raises(InvalidRequest) as caught:
        template.render(Messages(messages))
    assert caught.value.param == param


def test_deep_nesting_is_refused() -> None:
    arguments = '{"a":' * 700 + "1" + "}" * 700
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(InvalidRequest):
        render(CHATML, [{"role": "assistant", "content": "", "tool_calls": [call]}])


# ── which template ──

SET = {
    "default": "default {{ messages[0].content }}",
    "tool_use": "tools {{ tools[0].function.name }} {{ messages[0].content }}",
    "rag": "{{ documents[0].text }} {{ messages[0].content }}",
}


def test_set_of_templates_has_one_for_tools_and_one_for_documents() -> None:
    assert render(SET) == "default Hi"
    assert render(SET, tools=[TOOL]) == "tools f Hi"
    assert render(SET, documents=[{"text": "T"}]) == "T Hi"
    assert Template(SET).source == SET["tool_use"]
    assert Template(SET).supports_tools


def test_set_without_a_default_is_used_as_it_is() -> None:
    assert render({"tool_use": "x {{ messages[0].content }}"}) == "x Hi"


def test_documents_are_refused_where_the_template_has_no_place_for_them() -> None:
    with pytest.raises(InvalidRequest, match="no place") as caught:
        render(CHATML, documents=[{"text": "T"}])
    assert caught.value.param == "documents"
    with pytest.raises(InvalidRequest) as caught:
        render(SET, documents=["T"])
    assert caught.value.param == "documents[0]"


def test_chatml_stands_in_when_the_vocabulary_has_its_tokens() -> None:
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(None, chatml=True) == render({}, chatml=True) == expected


# ── going on with the last message ──

TURNS = [*HELLO, {"role": "assistant", "content": "One, two, "}]


def test_continued_message_ends_the_prompt_as_it_was_written() -> None:
    assert render(CHATML, TURNS, continue_last=True) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nOne, two, "
    )


def test_continued_message_is_trimmed_where_the_template_trims() -> None:
    source = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    assert render(source, TURNS, continue_last=True) == "[Hi][One, two,"


def test_continued_message_may_be_empty_or_in_parts() -> None:
    header = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    for content in ("", [], None):
        turns = [*HELLO, {"role": "assistant", "content": content}]
        assert render(CHATML, turns, continue_last=True) == header
    source = "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"
    turns = [*HELLO, {"role": "assistant", "content": PARTS[0]["content"]}]
    assert render(source, turns, continue_last=True) == "[Hi][a][b"


def test_reasoning_without_content_is_continued() -> None:
    source = "{% for m in messages %}[{{ m.reasoning_content }}|{{ m.content }}]{% endfor %}"
    turns = [*HELLO, {"role": "assistant", "reasoning_content": "Well,"}]
    assert render(source, turns, continue_last=True) == "[|Hi][Well,"


@pytest.mark.parametrize(
    "last",
    [
        HELLO[0],
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
        },
    ],
)
def test_only_what_the_assistant_says_is_continued(last: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="continued") as caught:
        render(CHATML, [*HELLO, last], continue_last=True)
    assert caught.value.param == "messages[1]"


def test_template_that_does_not_show_the_message_cannot_continue_it() -> None:
    source = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(InvalidRequest, match="cannot go on"):
        render(source, TURNS, continue_last=True)


# ── whatever comes ──

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
TEXT_PART = st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=8)})
FUNCTION = st.fixed_dictionaries(
    {"name": st.text(max_size=5)}, optional={"arguments": JSON | st.just('{"a": 1}')}
)
CALL = st.fixed_dictionaries({"function": FUNCTION | JSON}, optional={"id": JSON, "type": JSON})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "else"])},
    optional={
        "content": st.text(max_size=8) | st.lists(TEXT_PART, max_size=2) | JSON,
        "tool_calls": st.lists(CALL, max_size=2) | JSON,
        "tool_call_id": JSON,
        "name": JSON,
        "refusal": JSON,
        "reasoning_content": JSON,
    },
)
TOOLS = st.none() | st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": st.text(max_size=5)}, optional={"description": JSON, "parameters": JSON}
            ),
        }
    )
    | JSON,
    max_size=2,
)
EAGER = """{% for t in tools %}{{ t.function.description + '' }}{% endfor %}
{% for m in messages %}
{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}
{{ m.role }}: {{ m.content + '' }}
{% for c in m.tool_calls %}{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}
{% endfor %}{% endfor %}"""
TEMPLATES = [
    Template(source)
    for source in (
        CHATML,
        EAGER,
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
        "{{ messages[0].content }}",
    )
]


@settings(max_examples=150)
@given(st.lists(MESSAGE | JSON, max_size=4), TOOLS, st.booleans())
def test_whatever_comes_is_text_or_an_invalid_request(
    messages: list[Any], tools: list[Any] | None, continue_last: bool
) -> None:
    for template in TEMPLATES:
        prompt = Messages(messages, tools=tools, continue_last=continue_last)
        before = copy.deepcopy((messages, tools))
        with contextlib.suppress(InvalidRequest):
            assert isinstance(template.render(prompt), str)
        assert str((messages, tools)) == str(before), "the request itself is untouched"


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text()), min_size=1))
def test_chatml_says_every_turn_as_it_is(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert TEMPLATES[0].render(Messages(messages)) == expected + "<|im_start|>assistant\n"
