from __future__ import annotations

from typing import Any

import pytest

from edged.errors import InvalidRequest
from edged.protocol import Messages
from edged.worker.template import Template

HELLO = [{"role": "user", "content": "Hi"}]


def render(source: str | None, messages: list[dict[str, Any]] = HELLO, **more: Any) -> str:
    options = {k: more.pop(k) for k in ("bos", "eos", "chatml") if k in more}
    return Template(source, **options).render(Messages(messages, **more))


def test_blocks_leave_no_white_space() -> None:
    source = (
        "{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}"
    )
    assert render(source) == "Hi\n"


def test_special_tokens_tools_and_kwargs_reach_the_template() -> None:
    source = (
        "{{ bos_token }}|{{ tools[0].name }}|{{ mood }}|{{ add_generation_prompt }}|{{ eos_token }}"
    )
    text = render(source, tools=[{"name": "f"}], template_kwargs={"mood": "x"}, bos="B", eos="E")
    assert text == "B|f|x|True|E"


def test_tojson_keeps_characters_as_they_are() -> None:
    content = [{"role": "user", "content": "<é> & '中'"}]
    assert render("{{ messages[0].content | tojson }}", content) == "\"<é> & '中'\""
    assert render("{{ {'b': 1, 'a': [2]} | tojson(indent=2) }}") == (
        '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}'
    )


def test_loop_controls_generation_block_and_clock_exist() -> None:
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{{ strftime_now('%Y') | length }}"
    )
    assert render(source, HELLO * 2) == "Hi4"


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
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_any_failure_inside_the_template_is_an_invalid_request(source: str) -> None:
    with pytest.raises(InvalidRequest):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_sandbox_holds(source: str) -> None:
    with pytest.raises(InvalidRequest):
        render(source)


def test_no_template_means_completions_only() -> None:
    with pytest.raises(InvalidRequest, match="/v1/completions"):
        render(None)


def test_template_that_does_not_compile_says_so_at_the_request() -> None:
    template = Template("{% if %}")
    assert not template.usable
    with pytest.raises(InvalidRequest, match="cannot be compiled"):
        template.render(Messages(HELLO))


def test_chatml_stands_in_when_the_vocabulary_has_its_tokens() -> None:
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(None, chatml=True) == expected


PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
]


def test_parts_are_joined_for_a_template_that_reads_text() -> None:
    assert render("{{ messages[0].content }}", PARTS) == "ab"


def test_text_becomes_a_part_for_a_template_that_reads_parts_only() -> None:
    source = "{% for part in messages[0].content %}{{ part.text }};{% endfor %}"
    assert render(source, PARTS) == "a;b;"
    assert render(source) == "Hi;"


def test_image_part_is_refused_by_name() -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
    with pytest.raises(InvalidRequest, match="image_url") as caught:
        render("{{ messages[0].content }}", image)
    assert caught.value.param == "messages.0.content.0"


def test_developer_becomes_system_unless_the_template_knows_it() -> None:
    message = [{"role": "developer", "content": "x"}]
    assert render("{{ messages[0].role }}", message) == "system"
    assert render("{# developer #}{{ messages[0].role }}", message) == "developer"


def test_tool_call_arguments_arrive_as_an_object() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": "中"}'}}
    message = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    source = "{{ messages[0].content }}{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    assert render(source, message) == '{"a": "中"}'
    assert call["function"]["arguments"] == '{"a": "中"}', "the request itself is untouched"
