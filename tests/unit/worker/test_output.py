from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.worker.output import Output, find

GENERIC = find(None)


def run(output: Output, pieces: list[bytes]) -> tuple[str, str, bool]:
    content = reasoning = ""
    stopped = False
    for piece in [output.feed(p) for p in pieces] + [output.finish()]:
        assert not stopped or not (piece.content or piece.reasoning), "text after the stop"
        content += piece.content
        reasoning += piece.reasoning
        stopped = stopped or piece.stopped
    return content, reasoning, stopped


def cut(data: bytes, at: list[int]) -> list[bytes]:
    borders = sorted({min(a, len(data)) for a in at} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(borders)]


CUTS = st.lists(st.integers(0, 60), max_size=12)


@given(st.text(max_size=20), CUTS)
def test_plain_text_arrives_whole_however_it_is_cut(text: str, at: list[int]) -> None:
    pieces = cut(text.encode(), at)
    assert run(Output(), pieces) == (text, "", False)


@given(
    st.text("ab x", max_size=20), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), CUTS
)
def test_stop_strings_end_the_text_before_the_first_of_them(
    text: str, stop: list[str], at: list[int]
) -> None:
    content, _, stopped = run(Output(stop), cut(text.encode(), at))
    assert stopped == any(s in text for s in stop)
    assert not any(s in content for s in stop)
    assert text.startswith(content)
    if not stopped:
        assert content == text


@given(st.text("ab<think>/ ", max_size=12), st.text("ab<think>/ ", max_size=12), CUTS)
def test_thinking_is_parted_from_the_answer_however_it_is_cut(
    thought: str, answer: str, at: list[int]
) -> None:
    if "</think>" in thought + "</think>"[:-1]:
        return
    whole = f"<think>{thought}</think>{answer}".encode()
    assert run(Output(form=GENERIC), cut(whole, at)) == (answer.lstrip(), thought.strip(), False)


@given(st.text("ab<think>/ \n", max_size=16), CUTS)
def test_text_that_is_no_marker_is_released(text: str, at: list[int]) -> None:
    if text.lstrip().startswith(("<think>", "</think>")):
        return
    assert run(Output(form=GENERIC), cut(text.encode(), at)) == (text, "", False)


def test_reasoning_streams_before_it_ends() -> None:
    output = Output(form=GENERIC)
    output.feed(b"<think>\n")
    assert output.feed("让我想想".encode()).reasoning == "让我想想"
    assert output.reasoning


def test_block_opened_by_the_prompt_is_reasoning_from_the_start() -> None:
    output = Output(form=GENERIC, prompt="<|im_start|>assistant\n<think>\n")
    assert output.reasoning
    assert run(output, [b"why", b"\n</thi", b"nk>\n\nbecause"]) == ("because", "why", False)


def test_closed_block_in_the_prompt_opens_nothing() -> None:
    output = Output(form=GENERIC, prompt="<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not output.reasoning
    assert run(output, [b"</think", b">\n\nbecause"]) == ("because", "", False)


def test_stop_string_does_not_cut_the_reasoning() -> None:
    output = Output(["\n"], form=GENERIC)
    text = [b"<think>one\ntwo</think>answer\nmore"]
    assert run(output, text) == ("answer", "one\ntwo", True)


def test_marker_in_the_middle_is_text() -> None:
    text = "The tag <think> opens a block."
    assert run(Output(form=GENERIC), [text.encode()]) == (text, "", False)


@pytest.mark.parametrize("broken", [b"\xe4\xbd", b"\xff", b"a\xf0\x9f\x98"])
def test_broken_bytes_become_replacement_characters_only_at_the_end(broken: bytes) -> None:
    output = Output()
    content, _, _ = run(output, [broken])
    assert "�" in content


def test_character_cut_between_tokens_waits() -> None:
    output = Output()
    emoji = "🙂".encode()
    assert output.feed(emoji[:2]).content == ""
    assert output.feed(emoji[2:]).content == "🙂"


def test_half_stop_string_is_released_at_the_end() -> None:
    output = Output(["STOP"])
    assert output.feed(b"go ST").content == "go "
    assert output.finish().content == "ST"
