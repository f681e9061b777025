"""The arithmetic of `edged bench`: from what arrived to what is shown."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from edged.cli.bench import sizes, texts
from edged.cli.bench.answer import Answer, AnswerError, decode_rate, read
from edged.cli.bench.figures import Decode, Figure, Inputs, Others, Prompt, Report
from edged.cli.bench.wording import cautions, duration, number, plural, size, spread
from edged.hardware import Cpu, Hardware, Memory


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps({"id": "cmpl-1", "choices": []} | fields).encode() + b"\n\n"


def text(words: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": words, "logprobs": None, "finish_reason": finish}
    return event(choices=[choice], usage=None)


USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 2},
}
END = text("", "length") + event(usage=USAGE) + b"data: [DONE]\n\n"


def answer(*texts_s: float, sent_s: float = 0.0, n_tokens: int | None = None) -> Answer:
    n = len(texts_s) if n_tokens is None else n_tokens
    return Answer(sent_s, texts_s, texts_s[-1] if texts_s else 0.0, 10, 0, n)


def steady(start_s: float, rate: float, n: int) -> Answer:
    return answer(*(start_s + i / rate for i in range(n)))


def test_stream_is_read_with_the_times_of_its_pieces() -> None:
    found = read(10.0, [(10.5, text("a")), (11.0, text("b") + text("c")), (11.5, END)])
    assert found == Answer(10.0, (10.5, 11.0, 11.0), 11.5, 7, 2, 3)
    assert found.ttft_s == 0.5


@given(st.sets(st.integers(1, 400)))
def test_stream_may_be_cut_anywhere(cuts: set[int]) -> None:
    whole = b": ping\n\n" + text("ä") + text("b") + END
    places = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    pieces = [(1.0, whole[a:b]) for a, b in itertools.pairwise(places)]
    assert read(0.0, pieces) == Answer(0.0, (1.0, 1.0), 1.0, 7, 2, 3)


def test_answer_without_visible_text_has_its_first_token_at_its_end() -> None:
    assert read(1.0, [(3.0, END)]).ttft_s == 2.0


def test_error_in_a_stream_and_a_stream_that_breaks_off_are_told() -> None:
    with pytest.raises(AnswerError, match="the worker died"):
        read(0.0, [(1.0, text("a") + event(error={"message": "the worker died"}))])
    with pytest.raises(AnswerError, match="broke off"):
        read(0.0, [(1.0, text("a"))])


def test_rate_is_the_sum_while_every_client_was_receiving() -> None:
    assert decode_rate([steady(0.0, 50, 100)]) == pytest.approx(50)
    # One begins a second later; alone, the first one was three times as fast.
    first = answer(*(i / 60 for i in range(60)), *(1 + i / 20 for i in range(40)))
    assert decode_rate([first, steady(1.0, 20, 40)]) == pytest.approx(40)


def test_piece_of_several_tokens_counts_as_them() -> None:
    assert decode_rate([answer(0.0, 1.0, 2.0, n_tokens=6)]) == pytest.approx(2)


def test_clients_that_never_ran_together_are_not_added_up() -> None:
    one, other = steady(0.0, 100, 11), steady(5.0, 100, 11)
    assert decode_rate([one, other]) == pytest.approx(21 / 5.1)


def test_rate_of_too_little_is_unknown() -> None:
    assert decode_rate([answer(1.0)]) is None
    assert decode_rate([answer()]) is None


def test_figure_keeps_its_runs_in_their_order() -> None:
    assert Figure.of([3.0, 1.0, 2.00000001]) == Figure(2.0, 1.0, 3.0, (3.0, 1.0, 2.0))


def test_prompt_counts_what_was_computed() -> None:
    new = Answer(0.0, (2.0,), 2.0, 100, 10, 1)
    again = Answer(0.0, (0.5,), 0.5, 101, 88, 1)
    found = Prompt.of([(new, again)])
    assert found.tokens_per_s.median == pytest.approx(90 / 2)
    assert (found.ttft_s.median, found.shared_ttft_s.median) == (2.0, 0.5)
    assert (found.prompt_tokens, found.shared_tokens) == (100, 88)


def test_first_token_together_is_that_of_the_slowest() -> None:
    found = Decode.of(2, 3, [[answer(0.1, 0.2, 0.3), answer(0.15, 0.2, 0.3)]])
    assert (found.clients, found.completion_tokens, found.ttft_s.median) == (2, 3, 0.15)


def test_inputs_are_counted_over_the_time_of_all() -> None:
    found = Inputs.of(2, 4, [(2.0, [(1.0, 40), (0.5, 44), (1.5, 36)])])
    assert found.inputs_per_s.median == 6.0
    assert found.tokens_per_s.median == 60.0
    assert found.request_s.median == 1.0


@given(st.integers(1, 100))
def test_clients_are_those_that_can_run_together(parallel: int) -> None:
    found = sizes.clients((), parallel)
    assert found[0] == 1
    assert found[-1] == min(parallel, 8)
    assert list(found) == sorted(set(found))
    assert sizes.clients((4, 1, 4), parallel) == (1, 4)


@given(
    st.floats(0.01, 1e6),
    st.floats(0.01, 1000),
    st.integers(sizes.LEAST_CONTEXT, 1 << 20),
)
def test_sizes_fit_into_the_context_and_the_time(rate: float, window: float, context: int) -> None:
    n_answer = sizes.answer_tokens(rate, window, context)
    n_prompt = sizes.prompt_tokens(rate, window, context)
    assert 8 <= n_answer <= max(8, rate * window)
    assert 64 <= n_prompt <= max(64, rate * window)
    assert max(n_answer, n_prompt) < context * 0.81
    assert 1 <= sizes.inputs_each(1 / rate, window) <= 16


@given(st.floats(5, 3600), st.integers(1, 8))
def test_rounds_take_the_time_that_was_given(seconds: float, n_counts: int) -> None:
    prompt_s, each_s = sizes.windows_s(seconds, n_counts)
    assert 0.7 * seconds < sizes.ROUNDS * (prompt_s + n_counts * each_s) < seconds
    assert sizes.n_steps(n_counts) == 1 + 3 * (1 + n_counts)


def test_every_text_begins_differently() -> None:
    found = [texts.unique(16) for _ in range(200)]
    assert {len(each.split()) for each in found} == {16}
    assert len({each.split()[0] for each in found}) > 190


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.05123, "0.0512"),
        (4.0, "4"),
        (56.74, "56.7"),
        (99.96, "100"),
        (129.6, "130"),
        (12_345, "12,300"),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_words_of_figures() -> None:
    assert [duration(s) for s in (0.00083, 0.0512, 1.214, 75.0)] == [
        "0.83 ms",
        "51.2 ms",
        "1.21 s",
        "75 s",
    ]
    assert [size(n) for n in (None, 99 << 20, 3 << 29)] == ["-", "99 MiB", "1.5 GiB"]
    assert [plural(n, "cell") for n in (1, 8192)] == ["1 cell", "8,192 cells"]
    assert spread(Figure.of([1.0, 3.0])) == "1 - 3"
    assert spread(Figure.of([1.0])) == ""


REPORT = Report(
    edged="1",
    date="today",
    seconds=60.0,
    model="m",
    kind="chat",
    engine="llamacpp",
    build=None,
    why=(),
    context=512,
    parallel=4,
    settings=None,
    hardware=Hardware(Cpu("cpu", "x86_64", 2, 2, 2), Memory(1, 1, 1)),
    load_s=None,
    memory_bytes=None,
    daemon_memory_bytes=1,
    others=Others(0, 0),
)


def test_calm_box_needs_no_caution() -> None:
    known = Prompt.of([(Answer(0.0, (2.0,), 2.0, 100, 0, 1), Answer(0.0, (1.0,), 1.0, 100, 84, 1))])
    assert cautions(structs.replace(REPORT, prompt=known)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"others": Others(1, 0)}, "others used the daemon"),
        ({"others": Others(0, 1)}, "1 request of theirs ended"),
        ({"threads_reason": "2 → 1 threads"}, "2 → 1 threads"),
        ({"missing": ("decode, 8 clients",)}, "decode, 8 clients"),
        (
            {"prompt": Prompt.of([(Answer(0.0, (1.0,), 1.0, 9, 0, 1),) * 2])},
            "nothing of the same beginning",
        ),
    ],
)
def test_reader_is_told_what_moves_the_figures(change: dict[str, Any], words: str) -> None:
    [line] = cautions(structs.replace(REPORT, **change))
    assert words in line
