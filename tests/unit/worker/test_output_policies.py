# ruff: noqa: RUF001 - DeepSeek's tags are written with full-width bars
"""What happens where a model errs, and what a client may count on all the same."""

from __future__ import annotations

import gc
import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.protocol import CallDelta, ToolChoice
from edged.worker.output import FORMATS, Format, Output, find, json_text
from edged.worker.output.source import Source
from tests.unit.worker.calls import cut_at, read
from tests.unit.worker.families import TOOLS, tool, written
from tests.unit.worker.test_output_calls import check_everywhere, said

HERMES = find(None, "hermes")
QWEN = find(None, "qwen3-coder")
LLAMA = find(None, "llama3")
HARMONY = find(None, "gpt-oss")
COMMAND_R = find(None, "command-r")
DEEPSEEK = find(None, "deepseek-v3.1")
DEEPSEEK_CALL = "<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
LFM2 = find(None, "lfm2")
CALL = written(HERMES, [{"city": "Paris"}])


def hermes(inside: str) -> str:
    return f"<tool_call>\n{inside}\n</tool_call>"


# ── calls that are none ──


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, hermes('{"name": "get_weather", "arguments": {"city": "Paris"')),
        (HERMES, hermes('{"name": "get_weather", "arguments": {"city": Paris}}')),
        (HERMES, hermes('{"name": "get_weather", "arguments": {"city": "Paris",}}')),
        (HERMES, hermes('{"name": "get_weather", "arguments": ["Paris"]}')),
        (HERMES, hermes('{"name": "get_weather", "arguments": "Paris"}')),
        (HERMES, hermes('{"name": "get_weather", "arguments": {"days": 01}}')),
        (HERMES, hermes('{"name": "get_weather", "arguments": {"days": +1}}')),
        (HERMES, hermes('{"name": "get_weather", "arguments": {"city": "\\x"}}')),
        (HERMES, hermes('{"name": "get_weather", "arguments": {} "x": 1}')),
        (HERMES, hermes('{"name": 3, "arguments": {}}')),
        (HERMES, hermes('{"arguments": {}}')),
        (HERMES, hermes("{}")),
        (HERMES, hermes("get_weather")),
        (HERMES, "<tool_call>"),
        (HERMES, hermes('{"name": "get_weather", "arguments": ' + '{"a":' * 400 + "1")),
        (HERMES, hermes('{"name": "' + "x" * 5000 + '", "arguments": {}}')),
        (QWEN, "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n"),
        (QWEN, "<tool_call>\n<function=get_weather>\nParis\n</function>\n</tool_call>"),
        (QWEN, "<tool_call>\n<function=" + "x" * 5000 + ">"),
        (QWEN, "The tag <function= opens a call"),
        (LFM2, '<|tool_call_start|>[get_weather("Paris")]<|tool_call_end|>'),
        (LFM2, "<|tool_call_start|>[get_weather(city=Paris)]<|tool_call_end|>"),
        (LFM2, "<|tool_call_start|>[get_weather(city=[1, 2)]<|tool_call_end|>"),
        (LLAMA, '{"city": "Paris", "days": [1, {}]}'),
        (LLAMA, '{"name": "Anna", "age": 3}'),
        (LLAMA, "<|python_tag|>print(1)"),
        (COMMAND_R, "Action: go home [now]"),
        (COMMAND_R, "Action:\n```json\n[]\n```"),
        (DEEPSEEK, DEEPSEEK_CALL.format("[1]")),
        (DEEPSEEK, DEEPSEEK_CALL.format('{"city": tr')),
        (DEEPSEEK, "<｜tool▁calls▁begin｜>none<｜tool▁calls▁end｜>"),
        (HERMES, hermes('{"name": "get_weather", "arguments": {"a": "\\u12"}}')),
        (HERMES, hermes('{"name": "get_weather", "arguments": {"a" 1}}')),
        (HERMES, hermes('{"name": "get_weather", "arguments": {1: 1}}')),
        (HERMES, hermes('{"name": "get_weather", "arguments": {"a": tru}}')),
        (HARMONY, "Hello, <|world|> to=functions.get_weather"),
        (HARMONY, "<|channel|>commentary to=functions.get_weather"),
    ],
)
def test_malformed_call_is_content_to_the_last_character(form: Format, text: str) -> None:
    answer = (
        check_everywhere(form, text)
        if len(text) < 500
        else read(form, [text.encode()], tools=TOOLS)
    )
    assert answer.content == text
    assert not answer.calls
    assert not answer.stopped


def test_call_after_a_malformed_one_is_found() -> None:
    broken = hermes('{"name": "get_weather", "arguments": {city}}')
    answer = check_everywhere(HERMES, f"{broken}\n{CALL}")
    assert answer.content == broken
    assert said(answer) == [{"city": "Paris"}]


def test_opening_inside_a_malformed_call_is_looked_at() -> None:
    answer = check_everywhere(HERMES, f"I write <tool_call> now: {CALL}")
    assert answer.content == "I write <tool_call> now:"
    assert said(answer) == [{"city": "Paris"}]


def test_text_after_calls_is_content() -> None:
    answer = check_everywhere(HERMES, f"{CALL}\n\nThat was it. ")
    assert answer.content == "That was it. "
    assert said(answer) == [{"city": "Paris"}]


def test_second_call_that_is_malformed_leaves_the_first() -> None:
    answer = check_everywhere(LLAMA, f'{written(LLAMA, [{"city": "Paris"}])}; {{"name": 1}}')
    assert said(answer) == [{"city": "Paris"}]
    assert answer.content == '; {"name": 1}'


def test_json_answer_of_a_model_that_calls_without_tags_streams() -> None:
    output = Output(form=LLAMA, tools=TOOLS)
    assert output.feed(b'{"tit').content == ""
    assert output.feed(b'le": "A').content == '{"title": "A'
    assert output.feed(b" book").content == " book"


# ── calls that are meant well ──


@pytest.mark.parametrize(
    ("inside", "arguments"),
    [
        ('{"arguments": {"city": "Paris"}, "name": "get_weather"}', {"city": "Paris"}),
        ('{"name": "get_weather"}', {}),
        ('{"name": "get_weather", "arguments": null}', {}),
        ('{"name": "get_weather", "arguments": "{\\"days\\": 1}"}', {"days": 1}),
        ('{"name": "get_weather", "parameters": {"days": 1}}', {"days": 1}),
        ('{"id": 7, "name": "get_weather", "x": [1, {"a": "]"}], "arguments": {}}', {}),
        ('{"name":"get_weather","arguments":{"city":"a\nb\tc"}}', {"city": "a\nb\tc"}),
        ('  {"name" : "get_weather" , "arguments" : { "days" : -1.5e3 } }  ', {"days": -1500.0}),
        ('[{"name": "get_weather", "arguments": {"days": 1}}]', {"days": 1}),
        ('{"name": "get_weath\\u0065r", "arguments": {"days": 1}}', {"days": 1}),
    ],
)
def test_call_in_another_layout_is_read(inside: str, arguments: dict[str, object]) -> None:
    answer = check_everywhere(HERMES, hermes(inside))
    assert said(answer) == [arguments]
    assert answer.content == ""


def test_several_objects_between_two_tags_are_several_calls() -> None:
    one = '{"name": "get_weather", "arguments": {"days": 1}}'
    assert len(check_everywhere(HERMES, hermes(f"{one}\n{one}")).calls) == 2


def test_list_without_its_end_keeps_its_calls() -> None:
    form = find(None, "granite")
    text = written(form, [{"city": "Paris"}]).removesuffix("]")
    assert said(check_everywhere(form, text)) == [{"city": "Paris"}]


def test_mistral_is_read_in_both_generations() -> None:
    for name in ("mistral", "mistral-list", "mistral-call-id"):
        for other in ("mistral", "mistral-list", "mistral-call-id"):
            text = written(find(None, other), [{"city": "Paris"}])
            assert said(check_everywhere(find(None, name), text)) == [{"city": "Paris"}]


def test_qwen_coder_without_the_outer_tag_is_read() -> None:
    text = (
        "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
    )
    assert said(check_everywhere(QWEN, text)) == [{"city": "Paris"}]


def test_deepseek_fence_without_its_line_break_is_read() -> None:
    form = find(None, "deepseek-v3")
    text = written(form, [{"city": "Paris"}]).replace("\n```<", "```<")
    assert said(check_everywhere(form, text)) == [{"city": "Paris"}]


def test_kimi_may_call_out_of_its_reasoning() -> None:
    form = find(None, "kimi-k2")
    answer = check_everywhere(form, "<think>I call." + written(form, [{"city": "Paris"}]))
    assert answer.reasoning == "I call."
    assert said(answer) == [{"city": "Paris"}]


# ── values without types ──

TYPED = tool(
    "typed",
    {
        "text": {"type": "string"},
        "number": {"type": "number"},
        "flag": {"type": "boolean"},
        "either": {"type": ["string", "null"]},
        "some": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "word": {"enum": ["1", "one"]},
        "linked": {"$ref": "#/$defs/word"},
        "lost": {"$ref": "#/$defs/nowhere"},
        "free": {},
    },
    [],
    **{"$defs": {"word": {"type": "string"}}},
)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("text", "42", "42"),
        ("text", "null", "null"),
        ("text", ' "quoted" ', ' "quoted" '),
        ("text", "a\n\nb\n", "a\n\nb\n"),
        ("text", "", ""),
        ("number", "42", 42),
        ("number", "4e2", 400.0),
        ("number", "many", "many"),
        ("number", "NaN", "NaN"),
        ("flag", "true", True),
        ("flag", "False", False),
        ("either", "null", None),
        ("either", "None", None),
        ("either", "12", "12"),
        ("some", "12", 12),
        ("some", "true", "true"),
        ("word", "1", "1"),
        ("linked", "3", "3"),
        ("lost", "3", 3),
        ("free", "[1, 2]", [1, 2]),
        ("free", "[1, 2", "[1, 2"),
        ("unknown", '{"a": 1}', {"a": 1}),
    ],
)
def test_bare_value_becomes_what_its_schema_says(key: str, text: str, value: object) -> None:
    call = f"<tool_call>\n<function=typed>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n"
    answer = check_everywhere(QWEN, call, tools=[TYPED])
    ((_, arguments),) = answer.calls
    assert json.loads(arguments) == {key: value}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'it\\'s'", "it's"),
        ('"a, b) ]"', "a, b) ]"),
        ("True", True),
        ("[1, 'a', {'b': None}, (2, -3)]", [1, "a", {"b": None}, [2, -3]]),
        ("{'a': true, \"b\": [null]}", {"a": True, "b": [None]}),
        ("-1.5", -1.5),
    ],
)
def test_python_values_become_json(text: str, value: object) -> None:
    call = f"<|tool_call_start|>[typed(free={text}, flag=true)]<|tool_call_end|>"
    ((_, arguments),) = check_everywhere(LFM2, call, tools=[TYPED]).calls
    assert json.loads(arguments) == {"free": value, "flag": True}


# ── streaming ──


def test_held_call_comes_in_one_piece_and_an_enforced_one_streams() -> None:
    pieces = [bytes([b]) for b in CALL.encode()]
    held, streamed = Output(form=HERMES, tools=TOOLS), Output(form=HERMES, tools=TOOLS)
    streamed.enforce()
    deltas: list[list[CallDelta]] = [
        [delta for piece in map(output.feed, pieces) for delta in piece.calls]
        for output in (held, streamed)
    ]
    assert len(deltas[0]) == 1
    assert len(deltas[1]) > 10
    assert deltas[1][0].name == "get_weather"
    assert all(not delta.name and not delta.id for delta in deltas[1][1:])
    assert "".join(d.arguments for d in deltas[1]) == deltas[0][0].arguments


def test_long_text_of_an_enforced_call_streams_in_families_of_tags_too() -> None:
    output = Output(form=QWEN, tools=TOOLS)
    output.enforce()
    output.feed(b"<tool_call>\n<function=get_weather>\n<parameter=city>\n")
    assert [d.arguments for d in output.feed(b'a "long" ').calls] == ['a \\"long\\" ']


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_every_piece_is_the_beginning_of_json(form: Format) -> None:
    """Even while it streams, what a client has is a beginning of the final arguments."""
    text = written(form, [{"city": 'a "\\\n} ü', "days": 2}]).removeprefix(form.given)
    output = Output(form=form, tools=TOOLS, prompt=form.given)
    output.enforce()
    so_far = ""
    for byte in text.encode():
        for delta in output.feed(bytes([byte])).calls:
            so_far += delta.arguments
            assert not so_far.endswith("\\") or so_far.endswith("\\\\")
    assert json.loads(so_far) == {"city": 'a "\\\n} ü', "days": 2}


# ── around ──


def test_stop_string_is_looked_for_in_content_only() -> None:
    text = f"<think>a END b</think>Well. {CALL}\nThe END of it"
    answer = check_everywhere(HERMES, text.replace("Paris", "END"), stop=["END", "xyz"])
    assert (answer.reasoning, answer.content) == ("a END b", "Well.The ")
    assert said(answer) == [{"city": "END"}]
    assert (answer.stop, answer.stopped) == ("END", True)


def test_first_stop_string_in_the_text_is_the_one_that_is_told() -> None:
    answer = check_everywhere(HERMES, "one two three", stop=["three", "two"], tools=None)
    assert (answer.content, answer.stop) == ("one ", "two")


def test_stop_string_may_be_half_a_tag() -> None:
    answer = check_everywhere(HERMES, "a <tool b", stop=["<tool"])
    assert (answer.content, answer.stop) == ("a ", "<tool")


def test_trigger_is_told_once_its_tag_is_whole() -> None:
    output = Output(form=HERMES, tools=TOOLS)
    for piece in (b"Well.\n<tool", b"_call"):
        output.feed(piece)
        assert output.triggered is None
    output.feed(b'>\n{"na')
    assert output.triggered is not None
    trigger, since = output.triggered
    assert (trigger.text, since) == ("<tool_call>", '\n{"na')
    output.enforce()
    assert output.triggered is None


def test_trigger_of_what_is_no_call_is_taken_back() -> None:
    output = Output(form=HERMES, tools=TOOLS)
    output.feed(b"<tool_call>")
    assert output.triggered is not None
    output.feed(b" is a tag")
    assert output.triggered is None


def test_answer_of_plain_text_without_a_form_is_never_touched() -> None:
    text = "<think>a</think> <tool_call>{}</tool_call> [TOOL_CALLS]"
    assert read(None, [text.encode()], tools=TOOLS).content == text


# ── what the prompt has opened ──


def test_reasoning_in_the_middle_of_the_prompt_is_gone_on_with() -> None:
    prompt = "<|im_start|>assistant\n<think>\nLet me"
    answer = read(HERMES, [b" see.</think>\nYes."], prompt=prompt, continued=True)
    assert (answer.reasoning, answer.content) == (" see.", "Yes.")
    closed = prompt + " see.</think>\nNo"
    answer = read(HERMES, [b"<think> is a tag"], prompt=closed, continued=True)
    assert (answer.reasoning, answer.content) == ("", "<think> is a tag")


def test_channel_that_the_prompt_has_opened_is_gone_on_with() -> None:
    start = "<|start|>user<|message|>Hi<|end|><|start|>assistant"
    end = b" b<|end|><|start|>assistant<|channel|>final<|message|>c"
    answer = read(HARMONY, [end], prompt=f"{start}<|channel|>analysis<|message|>a", continued=True)
    assert (answer.reasoning, answer.content) == (" b", "c")
    answer = read(HARMONY, [b" b"], prompt=f"{start}<|channel|>final<|message|>a", continued=True)
    assert (answer.reasoning, answer.content) == ("", " b")


ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"


@pytest.mark.parametrize(
    "header",
    [
        " to=functions.get_weather<|channel|>commentary json<|message|>",
        " to=functions.get_weather<|channel|>analysis <|constrain|>json<|message|>",
        "<|channel|>analysis to=functions.get_weather<|message|>",
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>",
        f"{ANALYSIS}<|channel|>commentary to=functions.get_weather<|message|>",
        f"{ANALYSIS} to=functions.get_weather<|channel|>commentary<|message|>",
    ],
)
def test_recipient_stands_in_either_header(header: str) -> None:
    answer = check_everywhere(HARMONY, header + '{"city": "Paris"}')
    assert said(answer) == [{"city": "Paris"}]
    assert answer.content + answer.reasoning == ("Hm." if "Hm." in header else "")


def test_channels_come_apart() -> None:
    text = (
        "<|channel|>analysis<|message|>One.<|end|><|start|>assistant"
        "<|channel|>commentary<|message|>Two. <|end|><|start|>assistant"
        "<|channel|>analysis<|message|>Three.<|end|><|start|>assistant"
        "<|channel|>final<|message|>Four."
    )
    answer = check_everywhere(HARMONY, text)
    assert (answer.reasoning, answer.content) == ("One.Three.", "Two. Four.")


def test_command_r7b_tags_around_the_text_are_dropped() -> None:
    form = find(None, "command-r7b")
    text = "<|START_THINKING|>Hm<|START_RESPONSE|>Hi <b><|END_RESPONSE|>"
    answer = check_everywhere(form, text, tools=None)
    assert (answer.reasoning, answer.content) == ("Hm", "Hi <b>")


def test_tags_around_the_whole_content_are_dropped_and_others_are_text() -> None:
    form = find(None, "granite")
    xml = "<response>\n<a/></response>"
    answer = check_everywhere(form, f"<think>Hm</think><response>{xml} or so</response>\n")
    assert (answer.reasoning, answer.content) == ("Hm", f"{xml} or so")
    assert check_everywhere(form, f"So: {xml}").content == f"So: {xml}"


# ── any text ──

TEXT = st.text(
    alphabet=st.sampled_from(list('<>/|=_{}[]"\\,:;()` \n\tabctolf_iné'))
    | st.characters(exclude_categories=["Cs"]),
    max_size=60,
)
TAGS = sorted({tag for form in FORMATS for tag in re.findall(r"<[^ ]+?>|\[\w+\]", repr(form))})


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.sampled_from(TAGS) | TEXT | st.just('{"name": "get_weather", '), max_size=8),
    st.lists(st.integers(0, 300), max_size=12),
    st.booleans(),
)
def test_any_text_reads_the_same_however_it_is_cut(
    form: Format, parts: list[str], places: list[int], cut: bool
) -> None:
    data = "".join(parts).encode()
    whole = read(form, [data], tools=TOOLS, cut=cut)
    assert read(form, cut_at(data, places), tools=TOOLS, cut=cut).known() == whole.known()


JSON_PARTS = [*'{}[],:"\\ \n01-.eé\t\x0b', "u00e9", "true", "null", '"a"', '"b":', "1.5e3", "NaN"]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(JSON_PARTS), max_size=14).map("".join), st.integers(0, 20))
def test_json_is_what_python_takes_for_json(text: str, place: int) -> None:
    text = text.strip(" \n\t")
    wanted = True
    try:
        json.loads(text, strict=False, parse_constant=int)  # int("NaN") is an error
    except ValueError:
        wanted = False
    source, parts = Source(), []
    reading = json_text.value(source, parts.append)
    good = False
    try:
        for n, piece in enumerate((text[:place], text[place:], "")):
            source.feed(piece)
            source.ended = n == 2
            next(reading)
    except StopIteration as end:
        good = end.value and source.left == 0 and (n > 0 or place >= len(text))
    assert good == wanted
    if good:
        assert json.loads("".join(parts)) == json.loads(text, strict=False)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FORMATS), TEXT, st.lists(st.integers(0, 60), max_size=6))
def test_text_without_a_tag_loses_no_character(form: Format, text: str, places: list[int]) -> None:
    if form.name == "gpt-oss":
        return
    shown = read(form, cut_at(text.encode(), places), tools=TOOLS)
    assert shown.content == text


@pytest.mark.parametrize(
    "text",
    [
        "word " * 16_000,
        "\n" * 16_000,
        "<" * 16_000,
        "<think>" + "\n" * 16_000,
        "<tool_call>" + " " * 16_000,
        "<tool_call> " * 6_000,
        '<tool_call>{"name": "get_weather", "arguments": {"city": "' + "\\n" * 16_000,
        '<tool_call>{"name": "get_weather", "arguments": {"city": ' + "[" * 16_000,
        '<tool_call>{"name": "get_weather", "arguments": {"days": ' + "1" * 16_000,
    ],
    ids=range(9),
)
def test_time_grows_with_the_text_and_not_faster(text: str) -> None:
    """Byte by byte and whole: eight times the text may not take much more than eight times."""

    def seconds(part: str, step: int) -> float:
        output = Output(form=HERMES, tools=TOOLS, stop=["STOP"])
        data = part.encode()
        start = time.process_time()
        for at in range(0, len(data), step):
            output.feed(data[at : at + step])
        output.finish()
        return time.process_time() - start

    gc.disable()  # what earlier tests left would be walked through on this one's time
    try:
        for step in (3, len(text)):
            # The clock of a shared machine runs on while a neighbour has the core: the best counts.
            small = min(seconds(text[: len(text) // 8], step) for _ in range(5))
            limit = 30 * small + 0.05
            assert any(seconds(text, step) < limit for _ in range(10)), limit
    finally:
        gc.enable()


def test_choice_of_none_reads_no_calls() -> None:
    assert read(HERMES, [CALL.encode()], tools=TOOLS, choice=ToolChoice("none")).content == CALL
