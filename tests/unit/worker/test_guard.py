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


def test_everything_that_the_client_wrote_is_marked() -> None:
    guard = Guard(["<s>"])
    source = (
        "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
        "{{ tools[0] | tojson }}{{ mood }}"
    )
    call = {"function": {"name": "f", "arguments": '{"\\u003cs>": "\\u003cs>"}'}}
    prompt = Template(source, guard=guard).render(
        Messages(
            [{"role": "assistant", "content": None, "tool_calls": [call]}],
            tools=[{"<s>": ["<s>", 1, None]}],
            template_kwargs={"mood": "<s>"},
        )
    )
    assert "<s>" not in prompt
    assert "".join(text for text, _ in guard.split(prompt)).count("<s>") == 5


def test_prompt_without_control_tokens_is_one_untouched_part() -> None:
    assert list(Guard(SPECIALS).split("Hello <|im_start|>")) == [("Hello <|im_start|>", True)]
    assert list(Guard([]).split("")) == [("", True)]
