"""Each repair on a small template that needs it, written as models' own templates are."""

from __future__ import annotations

from typing import Any

import pytest

from edged.errors import InvalidRequest
from edged.protocol import Messages
from edged.worker.template import CHATML, Template
from edged.worker.template.repair import short_id

SYSTEM = {"role": "system", "content": "Be brief."}
LATE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, SYSTEM]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def user(content: Any = "Hi") -> dict[str, Any]:
    return {"role": "user", "content": content}


def called(*arguments: Any, content: str | None = None, **more: Any) -> dict[str, Any]:
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": f"f{i}", "arguments": each}}
        for i, each in enumerate(arguments)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls} | more


def came(i: int, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{i}", "content": content}


def render(source: str, *messages: dict[str, Any], **more: Any) -> str:
    return Template(source).render(Messages(list(messages), **more))


# ── system ──

GEMMA = """\
{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for m in messages %}
{% set turn = loop.index0 % 2 == 0 %}
{% if (m.role == 'user') != turn %}{{ raise_exception('must alternate') }}{% endif %}
[{{ m.role }}]{{ m.content | trim }}
{%- endfor %}"""
DROPS = """\
{% for m in messages %}
{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}
{% endfor %}"""
FIRST = """\
{% for m in messages %}
{% if m.role == 'system' and not loop.first %}{{ raise_exception('only at the start') }}{% endif %}
[{{ m.role }}]{{ m.content }}
{%- endfor %}"""
LAST_TURN = """\
{% if messages[0].role == 'system' %}{% set said = messages[0].content %}{% endif %}
{% for m in messages if m.role != 'system' %}
[{{ m.role }}]{% if loop.last and m.role == 'user' and said %}({{ said }}){% endif %}{{ m.content }}
{%- endfor %}"""


@pytest.mark.parametrize("source", [GEMMA, DROPS])
def test_system_goes_into_the_users_turn_where_it_is_refused_or_dropped(source: str) -> None:
    assert render(source, SYSTEM, user()) == "[user]Be brief.\n\nHi"


def test_system_alone_becomes_the_users_turn() -> None:
    assert render(GEMMA, SYSTEM) == "[user]Be brief."


@pytest.mark.parametrize("source", [GEMMA, DROPS, FIRST])
def test_later_system_message_goes_into_the_turn_that_follows(source: str) -> None:
    assert render(source, *LATE, user("c")) == "[user]a[assistant]b[user]Be brief.\n\nc"


def test_two_system_messages_at_the_start_become_one() -> None:
    developer = {"role": "developer", "content": "In verse."}
    assert render(FIRST, SYSTEM, developer, user()) == "[system]Be brief.\n\nIn verse.[user]Hi"


def test_system_messages_stay_where_the_template_shows_them() -> None:
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    expected = "[user]a[assistant]b[system]Be brief.[user]c"
    assert render(source, *LATE, user("c")) == expected


def test_system_that_shows_in_some_conversations_only_is_never_lost() -> None:
    assert render(LAST_TURN, SYSTEM, user()) == "[user](Be brief.)Hi"
    assert render(LAST_TURN, SYSTEM, user(), {"role": "assistant", "content": "b"}) == (
        "[user]Be brief.\n\nHi[assistant]b"
    )


def test_system_that_shows_in_quotes_is_not_lost() -> None:
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content | tojson }}{% endfor %}"
    quoted = {"role": "system", "content": '"Be"\n"brief"'}
    assert render(source, quoted, user()) == '[system]"\\"Be\\"\\n\\"brief\\""[user]"Hi"'


def test_developer_is_the_newer_word_for_system() -> None:
    assert render(CHATML, {"role": "developer", "content": "x"}, user()).startswith(
        "<|im_start|>system\nx"
    )


# ── turns and content ──


def test_turns_of_one_role_are_joined_where_they_must_alternate() -> None:
    assert render(GEMMA, user("a"), user("b")) == "[user]a\n\nb"
    two = [{"role": "assistant", "content": "b"}, {"role": "assistant", "content": "c"}]
    assert render(GEMMA, user("a"), *two, user("d")) == "[user]a[assistant]b\n\nc[user]d"
    with pytest.raises(InvalidRequest, match="must alternate"):
        render(GEMMA, *two)


PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
READS_PARTS = "{% for m in messages %}{% for p in m.content %}{{ p.text }};{% endfor %}{% endfor %}"
READS_BOTH = """\
{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}|{% elif m.content is string %}
{{ m.content }}{% else %}{% for p in m.content %}({{ p.text }}){% endfor %}{% endif %}
{%- endfor %}"""


def test_parts_become_lines_for_a_template_that_reads_text() -> None:
    assert render("{% for m in messages %}{{ m.content }}{% endfor %}", user(PARTS)) == "a\nb"
    assert "a\nb" in render(CHATML, user(PARTS))


def test_text_becomes_a_part_for_a_template_that_reads_parts() -> None:
    assert render(READS_PARTS, user(PARTS)) == "a;b;"
    assert render(READS_PARTS, user()) == "Hi;"


def test_each_role_has_its_own_form_of_content() -> None:
    system = {"role": "system", "content": PARTS}
    assert render(READS_BOTH, system, user(PARTS)) == "a\nb|(a)(b)"
    assert render(READS_BOTH, system, user()) == "a\nb|Hi"


def test_refusal_is_what_the_assistant_said() -> None:
    refused = {"role": "assistant", "content": None, "refusal": "No."}
    parts = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    for message in (refused, parts):
        assert "assistant\nNo.<" in render(CHATML, user(), message, user())


# ── calls ──

HEAD = "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}{% for m in messages %}"
BODY = "[{{ m.role }}]{{ m.content }}"
AS_OBJECT = (
    HEAD
    + BODY
    + "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
AS_TEXT = (
    HEAD + BODY + "{% for c in m.tool_calls %}{{ c.function.arguments }}{% endfor %}{% endfor %}"
)
AS_ITEMS = (
    HEAD + BODY + "{% for c in m.tool_calls %}{% for k, v in c.function.arguments.items() %}"
    "{{ k }}={{ v }};{% endfor %}{% endfor %}{% endfor %}"
)


def test_arguments_come_as_the_template_prints_them() -> None:
    message = called('{"a":"中"}')
    assert render(AS_OBJECT, user(), message) == '[user]Hi[assistant]{"a": "中"}'
    assert render(AS_TEXT, user(), message) == '[user]Hi[assistant]{"a": "中"}'
    assert render(AS_ITEMS, user(), message) == "[user]Hi[assistant]a=中;"
    assert message["tool_calls"][0]["function"]["arguments"] == '{"a":"中"}', "untouched"


@pytest.mark.parametrize("arguments", ["", None, "{}"])
def test_no_arguments_are_an_empty_object(arguments: str | None) -> None:
    assert render(AS_ITEMS, user(), called(arguments)) == "[user]Hi[assistant]"


def test_arguments_that_are_no_object_reach_a_template_that_prints_them() -> None:
    assert render(AS_TEXT, user(), called("{broken")) == "[user]Hi[assistant]{broken"
    with pytest.raises(InvalidRequest):
        render(AS_ITEMS, user(), called("{broken"))


NULL = HEAD + (
    "{% if m.role == 'assistant' and m.content is none %}"
    "calls {{ m.tool_calls[0].function.arguments | tojson }}"
    "{% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
)


def test_content_beside_calls_is_null_where_the_template_wants_that() -> None:
    assert render(NULL, user(), called("{}", content="")) == "[user]Hicalls {}"
    assert render(AS_OBJECT, user(), called("{}")) == "[user]Hi[assistant]{}", "and never None"


MISTRAL = HEAD + (
    "{% if m.tool_calls is defined %}{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('ids have length 9') }}{% endif %}"
    "{{ c.id }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{% elif m.role == 'tool' %}"
    "{% if m.tool_call_id | length != 9 %}{{ raise_exception('9') }}{% endif %}"
    "{{ m.tool_call_id }}{{ m.content }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def test_ids_have_nine_characters_where_the_template_insists() -> None:
    made = short_id("call_0")
    assert made != short_id("call_1")
    assert len(made) == 9
    assert made.isalnum()
    assert short_id("abcDEF123") == "abcDEF123"
    assert render(MISTRAL, user(), called("{}"), came(0, "7")) == f"Hi{made}{{}}{made}7"


def test_results_come_in_the_order_of_their_calls_with_the_names_of_the_tools() -> None:
    source = HEAD + "{{ m.name }}{{ m.content }}{{ m.tool_calls | default('') }}{% endfor %}"
    source = HEAD + (
        "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
        "{{ m.name }}:{{ m.content }} {% endfor %}"
    )
    prompt = render(source, user(), called("{}", "{}"), came(1, "second"), came(0, "first"))
    assert prompt.endswith("f0:first f1:second ")


SINGLE = HEAD + (
    "{% if m.tool_calls %}"
    "{% if m.tool_calls | length > 1 %}{{ raise_exception('one at once') }}{% endif %}"
    "{{ m.tool_calls[0].function.name }}{{ m.tool_calls[0].function.arguments | tojson }} "
    "{% else %}[{{ m.role }}]{{ m.content }} {% endif %}{% endfor %}"
)


def test_several_calls_follow_each_other_where_the_template_takes_one() -> None:
    prompt = render(SINGLE, user(), called("{}", '{"a": 1}'), came(0, "x"), came(1, "y"), user("?"))
    assert prompt == '[user]Hi f0{} [tool]x f1{"a": 1} [tool]y [user]? '


GEMMA_4 = HEAD + (
    "[{{ m.role }}\n{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
    "{% for r in m.tool_responses %}<{{ r.name }}={{ r.response }}>{% endfor %}"
    "{{ m.content }}]{% endfor %}"
)


def test_results_go_into_the_message_that_called_where_the_template_has_them_there() -> None:
    said = {"role": "assistant", "content": "7 degrees."}
    prompt = render(GEMMA_4, user(), called("{}"), came(0, '{"t": 7}'), said, user("?"))
    assert prompt == "[user\nHi][assistant\n{}<f0={'t': 7}>7 degrees.][user\n?]"


def test_reasoning_comes_under_the_name_that_the_template_reads() -> None:
    for name in ("reasoning_content", "thinking", "reasoning"):
        for given in ("reasoning_content", "thinking", "reasoning"):
            source = "{% for m in messages %}{{ m." + name + " }}|{{ m.content }} {% endfor %}"
            message = {"role": "assistant", "content": "b", given: "Well."}
            assert render(source, user(), message, user()) == "|Hi Well.|b |Hi "


def test_reasoning_becomes_a_part_where_the_template_has_it_there() -> None:
    source = HEAD + (
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{% if p.type == 'thinking' %}<{{ p.thinking }}>{% else %}{{ p.text }}{% endif %}"
        "{% endfor %}"
        "{% endif %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
        "{% endfor %}"
    )
    message = called("{}", content="b", reasoning_content="Well.")
    assert render(source, user(), message) == "Hi<Well.>b{}"


def test_content_joins_the_reasoning_where_the_template_takes_one_of_them_beside_calls() -> None:
    source = HEAD + (
        "{% if m.tool_calls %}"
        "{% if m.content and m.thinking %}{{ raise_exception('not both') }}{% endif %}"
        "<{{ m.thinking or m.content }}>{{ m.tool_calls[0].function.arguments | tojson }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    message = called("{}", content="b", reasoning_content="Well.")
    assert render(source, user(), message) == "Hi<Well.\n\nb>{}"


# ── templates without tools ──


def test_tools_are_described_where_the_template_does_not_show_them() -> None:
    template = Template(CHATML)
    assert not template.supports_tools
    prompt = template.render(Messages([SYSTEM, user()], tools=[TOOL]))
    system = prompt.split("<|im_end|>")[0]
    assert '{"type": "function", "function": {"name": "f"' in system
    assert '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}' in system
    assert system.endswith("Be brief.")
    assert render(GEMMA, user(), tools=[TOOL]).startswith("[user]# Tools")


def test_calls_and_results_become_text_where_the_template_has_no_place_for_them() -> None:
    prompt = render(CHATML, user(), called('{"a": 1}', content="Wait."), came(0, "x"), user("?"))
    assert prompt == (
        "<|im_start|>user\nHi<|im_end|>\n"
        '<|im_start|>assistant\nWait.\n<tool_call>\n{"name": "f0", "arguments": {"a": 1}}\n'
        "</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nx\n</tool_response><|im_end|>\n"
        "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"
    )
    joined = render(GEMMA, user(), called("{}", "{}"), came(0, "x"), came(1, "y"), user("?"))
    assert joined.count("[user]") == 2


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ("<|tool_list_start|>", '<|tool_call_start|>[f0(a="x", b=true), f1()]<|tool_call_end|>'),
        (
            "<|tool_call|>",
            (
                '<|tool_call|>[{"name": "f0", "arguments": {"a": "x", "b": true}}, '
                '{"name": "f1", "arguments": {}}]'
            ),
        ),
    ],
)
def test_calls_that_a_template_drops_are_written_as_its_model_does(
    mark: str, expected: str
) -> None:
    source = HEAD + BODY + "{% endfor %}{{ '" + mark + "' if tools }}"
    prompt = render(
        source, user(), called('{"a": "x", "b": true}', "{}"), came(0, "7"), came(1, "8")
    )
    assert prompt == f"[user]Hi[assistant]{expected}[tool]7[tool]8"


def test_descriptions_that_a_template_counts_on_are_empty_where_they_are_missing() -> None:
    source = (
        "{% for t in tools %}{{ t.function.description + '!' }}"
        "{% for k, v in t.function.parameters.properties.items() %}{{ k + v.type + v.description }}"
        "{% endfor %}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% for t in tools %}{{ t.function.name }}{% endfor %}"
    )
    bare = {"type": "function", "function": {"name": "f"}}
    assert render(source, user(), tools=[bare]) == "!Hif"
    untyped = {"type": "object", "properties": {"k": {"anyOf": []}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": untyped}}
    assert render(source, user(), tools=[tool]) == "!kstringHif"


def test_functions_and_xml_tools_are_other_names_of_the_tools() -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{{ '|' + functions }}"
    assert Template(source).supports_tools
    assert render(source, user()) == "Hi|"
    assert '"name": "f"' in render(source, user(), tools=[TOOL])
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{{ xml_tools or '' }}"
    assert "'name': 'f'" in render(source, user(), tools=[TOOL])


def test_model_of_gemma_4_always_has_its_turn() -> None:
    source = "{% for m in messages %}<|turn>{{ m.role }}\n{{ m.content }}<turn|>\n{% endfor %}"
    assert render(source, user()).endswith("<turn|>\n<|turn>model\n")
