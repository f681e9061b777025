from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from edged.protocol import Messages
from edged.worker.guard import Guard, any_of
from edged.worker.template import Template

SPECIALS = ["<|im_start|>", "<|im_end|>", "<s>", "<|im|>", "x"]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@given(st.lists(st.text("ab<|", min_size=1, max_size=4), max_size=8), st.text("ab<|", max_size=30))
def test_pattern_finds_the_longest_word_as_an_alternation_would(
    words: list[str], text: str
) -> None:
    plain = "|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)"
    assert any_of(words).findall(text) == re.findall(plain, text)


@given(st.lists(st.sampled_from([*SPECIALS, "<", "|>", "text ", "\ufdd0", "{{"])).map("".join))
def test_text_comes_back_whole_and_no_control_token_of_the_client_is_spelled_out(
    content: str,
) -> None:
    guard = Guard(SPECIALS)
    prompt = Template(CHATML, guard=guard).render(Messages([{"role": "user", "content": content}]))
    parts = list(guard.split(prompt))
    if "\ufdd0" not in content:
        expected = f"<|im_start|>user\n{content}<|im_end|>\n"
        assert "".join(text for text, _ in parts) == expected
    trusted = " ".join(text for text, special in parts if special)
    assert trusted.count("<|im_start|>") == trusted.count("<|im_end|>") == 1
    assert "<s>" not in trusted


EVERYTHING = """\
{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{% if documents %}{{ documents | tojson }}{% endif %}{{ mood }}
{% for m in messages %}{{ m.role }}: {{ m.content }}
{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}
{% endfor %}"""


def test_everything_that_the_client_wrote_is_marked() -> None:
    guard = Guard(["<s>", "user"])
    call = {"function": {"name": "f", "arguments": '{"\\u003cs>": "\\u003cs>"}'}}
    prompt = Template(EVERYTHING, guard=guard).render(
        Messages(
            [
                {"role": "user", "content": "<s>"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
            ],
            tools=[{"function": {"name": "<s>", "<s>": ["<s>", 1, None]}}],
            documents=[{"text": "<s>"}],
            template_kwargs={"mood": "<s>"},
        )
    )
    assert "<s>" not in prompt
    assert "user:" in prompt, "a role is the template's word, even if it is a control token"
    assert "".join(text for text, _ in guard.split(prompt)).count("<s>") == 8


def test_tools_that_edged_describes_are_the_clients_text_inside_edgeds() -> None:
    guard = Guard(["<tool_call>", "<s>"])
    prompt = Template(CHATML, guard=guard).render(
        Messages(
            [{"role": "user", "content": "<tool_call>"}],
            tools=[{"type": "function", "function": {"name": "<s>"}}],
        )
    )
    parts = list(guard.split(prompt))
    assert [text for text, special in parts if not special] == ["<s>", "<tool_call>"]
    assert "<tool_call>" in parts[0][0] + parts[2][0], "edged asks for it as the token that it is"


def test_token_that_a_template_cuts_up_does_not_grow_together_again() -> None:
    guard = Guard(["<s>"])
    source = "{{ messages[0].content[:2] }}s|{{ messages[0].content[2:] }}"
    prompt = Template(source, guard=guard).render(Messages([{"role": "user", "content": "<s>a"}]))
    assert list(guard.split(prompt)) == [("<", True), ("s|s>a", True)]


def test_prompt_without_control_tokens_is_one_untouched_part() -> None:
    assert list(Guard(SPECIALS).split("Hello <|im_start|>")) == [("Hello <|im_start|>", True)]
    assert list(Guard([]).split("")) == [("", True)]
