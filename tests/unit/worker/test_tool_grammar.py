"""Grammars of tool calls against llguidance itself, and against the parser.

The strongest check is the round trip: a random walk through a family's grammar is an answer that
some model could give, and the parser must read valid calls out of every one of them.
"""

from __future__ import annotations

import functools
import json
import random
from typing import Any, ClassVar

import llguidance
import pytest

from edged.protocol import Grammar, JsonSchema, Regex, ToolChoice
from edged.worker.output import (
    FORMATS,
    SHOWN_TOKENS,
    Format,
    Output,
    find,
    lark,
    lark_after_trigger,
)
from edged.worker.output.syntax import Trigger
from tests.unit.worker.calls import Answer, read
from tests.unit.worker.families import NOTHING, TOOLS, tool, written
from tests.unit.worker.schema_check import breaches

SPECIAL = sorted(SHOWN_TOKENS)
END = 256
ROWS = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
TOKENS = pytest.mark.parametrize("special", [True, False], ids=["tokens", "text"])


class Bytes:
    """A vocabulary of single bytes, the end, and all tags as control tokens."""

    eos_token_id = END
    bos_token_id = None
    tokens: ClassVar = (
        [bytes([i]) for i in range(256)] + [b"<end>"] + [tag.encode() for tag in SPECIAL]
    )
    special_token_ids: ClassVar = list(range(END, END + 1 + len(SPECIAL)))

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@functools.cache
def tokenizer() -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()))


CLOSING = [
    list(closing)
    for closing in (b"</parameter>", b"\n</parameter>", b"</param>", b"</arg_value>", b"<|end|>")
]


def as_token(text: str) -> int | None:
    return END + 1 + SPECIAL.index(text) if text in SHOWN_TOKENS else None


def as_text(_: str) -> None:
    return None


def matcher(grammar: str) -> llguidance.LLMatcher:
    made = llguidance.LLMatcher(tokenizer(), llguidance.LLMatcher.grammar_from_lark(grammar))
    assert not made.is_error(), made.get_error() + "\n" + grammar
    return made


def tokens_of(text: str, *, special: bool) -> list[int]:
    """Return the tokens of a text, its tags as control tokens or byte by byte."""
    found: list[int] = []
    while text:
        tag = next((t for t in SPECIAL if special and text.startswith(t)), None)
        found += [as_token(tag) or 0] if tag else text[0].encode()
        text = text[len(tag or text[0]) :]
    return found


def accepts(grammar: str, text: str, *, special: bool) -> bool:
    made = matcher(grammar)
    tokens = tokens_of(text, special=special)
    return (
        made.validate_tokens(tokens) == len(tokens)
        and all(made.consume_token(token) for token in tokens)
        and made.is_accepting()
    )


def walk(grammar: str, seed: int, *, special: bool, most: int = 3000) -> bytes | None:
    """Return a random answer of a grammar, None if it did not end."""
    made, chance = matcher(grammar), random.Random(seed)
    said = b""
    for n in range(most):
        if made.is_stopped():
            return said
        bias = made.compute_logit_bias()
        allowed = [token for token, free in enumerate(bias) if free]
        step = [chance.choice(allowed)]
        if n > 40 and chance.random() < 0.5:  # towards an end
            free = not special and len(allowed) > 100
            closing = [c for c in CLOSING if free and made.validate_tokens(c) == len(c)]
            ending = [[t] for t in allowed if t >= END or chr(t) in '"}])']
            step = chance.choice(closing or ending or [step])
        if step == [END]:
            return said
        for token in step:
            assert made.consume_token(token), made.get_error()
            said += Bytes.tokens[token]
    return None


REQUIRED = ToolChoice("required")


def _int(digits: str) -> int:
    return int(digits[:300])  # Python refuses to read more than some thousand


SCHEMAS = {t["function"]["name"]: t["function"]["parameters"] for t in TOOLS}


def check(answer: Answer, names: set[str]) -> None:
    assert answer.calls
    assert not answer.content.strip(), answer
    for name, arguments in answer.calls:
        assert name in names
        assert not breaches(json.loads(arguments, parse_int=_int), SCHEMAS[name]), arguments


@ROWS
@TOKENS
def test_random_answer_of_the_grammar_parses_into_valid_calls(form: Format, special: bool) -> None:
    grammar = lark(form, TOOLS, REQUIRED, token_of=as_token if special else as_text)
    ended = 0
    for seed in range(4):
        said = walk(grammar, seed, special=special)
        if said is None:
            continue
        ended += 1
        prompt = form.given
        answer = read(form, [said], tools=TOOLS, prompt=prompt)
        check(answer, set(SCHEMAS))
        enforced = read(form, [said], tools=TOOLS, prompt=prompt, enforced=True)
        assert (enforced.content, enforced.calls) == (answer.content, answer.calls)
    assert ended >= 1


@ROWS
@TOKENS
def test_answer_can_be_constrained_from_its_trigger_on(form: Format, special: bool) -> None:
    """The way of `auto`: the parser sees the beginning of a call, a grammar takes over there."""
    token_of = as_token if special else as_text
    whole = lark(form, TOOLS, REQUIRED, token_of=token_of)
    ended = 0
    for seed in range(8):
        said = walk(whole, seed, special=special)
        if said is None:
            continue
        head, trigger, since = up_to_trigger(form, said)
        after = lark_after_trigger(TOOLS, REQUIRED, trigger, token_of=token_of)
        begun = head.removesuffix(since.encode())
        tail = said[len(begun) :]
        assert accepts(after, tail.decode(), special=special), (tail, after)
        other = walk(after, seed + 100, special=special)
        if other is None:
            continue
        ended += 1
        answer = read(form, [begun + other], tools=TOOLS, prompt=form.given)
        check(answer, set(SCHEMAS))
    assert ended >= 1


def up_to_trigger(form: Format, said: bytes) -> tuple[bytes, Trigger, str]:
    """Feed an answer until a call begins; return what was fed, the trigger, what is after it."""
    output = Output(form=form, prompt=form.given, tools=TOOLS)
    for n in range(len(said)):
        output.feed(said[n : n + 1])
        if output.triggered is not None:
            return said[: n + 1], *output.triggered
    raise AssertionError(f"no trigger in {said!r}")


@ROWS
@TOKENS
@pytest.mark.parametrize(
    ("arguments", "good"),
    [
        ({"city": 'Par"is', "days": 2}, True),
        ({"city": "京都", "unit": "celsius"}, True),
        ({"days": 2}, False),
        ({"city": "Paris", "days": 99}, False),
        ({"city": "Paris", "unit": "kelvin"}, False),
        ({"city": "Paris", "other": 1}, False),
    ],
)
def test_grammar_takes_the_familys_own_calls_and_no_wrong_ones(
    form: Format, special: bool, arguments: dict[str, Any], good: bool
) -> None:
    # The prompt has the beginning already, and <|call|> ends the answer.
    text = written(form, [arguments]).removeprefix(form.given).removesuffix("<|call|>")
    for choice in (REQUIRED, ToolChoice("required", ["get_weather"], parallel=False)):
        grammar = lark(form, TOOLS, choice, token_of=as_token if special else as_text)
        assert accepts(grammar, text, special=special) == good
    answer = read(form, [text.encode()], tools=TOOLS, prompt=form.given)
    assert [(name, json.loads(a)) for name, a in answer.calls] == [("get_weather", arguments)]


@ROWS
def test_only_the_tools_of_the_choice_can_be_called(form: Format) -> None:
    named = ToolChoice("required", ["nothing"])
    grammar = lark(form, TOOLS, named, token_of=as_text)
    assert not accepts(grammar, written(form, [{"city": "Paris"}]), special=False)
    said = next(s for seed in range(9) if (s := walk(grammar, seed, special=False)))
    answer = read(form, [said], tools=TOOLS, choice=named, prompt=form.given)
    assert {name for name, _ in answer.calls} == {"nothing"}


@ROWS
def test_without_parallel_there_is_one_call(form: Format) -> None:
    one = ToolChoice("required", parallel=False)
    grammar = lark(form, [NOTHING], one, token_of=as_text)
    said = walk(grammar, 1, special=False)
    assert said is not None
    answer = read(form, [said], tools=TOOLS, prompt=form.given)
    assert [(name, json.loads(a)) for name, a in answer.calls] == [("nothing", {})]


def test_choice_of_no_known_tool_is_an_error() -> None:
    with pytest.raises(ValueError, match="no tool"):
        lark(HERMES, TOOLS, ToolChoice("required", ["other"]), token_of=as_text)


# ── around the call ──

HERMES = next(form for form in FORMATS if form.name == "hermes")
THINKING = find("{{ tools }} <tool_call> <think>")
CALL = written(HERMES, [{"city": "Paris"}])


def test_model_that_reasons_may_do_so_first() -> None:
    grammar = lark(THINKING, TOOLS, REQUIRED, token_of=as_text)
    assert accepts(grammar, f"<think>\nA {{ <tool_call>\n</think>\n\n{CALL}", special=False)
    assert accepts(grammar, CALL, special=False)
    assert not accepts(grammar, f"Well, {CALL}", special=False)
    plain = lark(HERMES, TOOLS, REQUIRED, token_of=as_text)
    assert not accepts(plain, f"<think>\n</think>\n\n{CALL}", special=False)


@TOKENS
def test_reasoning_that_the_prompt_opened_is_gone_on_with(special: bool) -> None:
    token_of = as_token if special else as_text
    grammar = lark(THINKING, TOOLS, REQUIRED, token_of=token_of, opened=True)
    assert accepts(grammar, f"Hm.\n</think>\n\n{CALL}", special=special)
    assert not accepts(grammar, CALL, special=special)


@TOKENS
def test_channels_reason_first(special: bool) -> None:
    form = next(form for form in FORMATS if form.name == "gpt-oss")
    call = written(form, [{"city": "Paris"}]).removesuffix("<|call|>")
    token_of = as_token if special else as_text
    grammar = lark(form, TOOLS, REQUIRED, token_of=token_of)
    thought = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant"
    assert accepts(grammar, thought + call, special=special)
    assert not accepts(grammar, "<|channel|>final<|message|>No.", special=special)


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (JsonSchema({"type": "object", "properties": {"a": {"type": "null"}}}), '{"a":null}', "{"),
        (Regex("[a-c]+/"), "abc/", "abc"),
    ],
)
def test_content_of_a_shape_is_allowed_beside_calls(
    constraint: JsonSchema | Regex, good: str, bad: str
) -> None:
    grammar = lark(HERMES, TOOLS, ToolChoice("auto"), constraint, token_of=as_text)
    assert accepts(grammar, good, special=False)
    assert accepts(grammar, CALL, special=False)
    assert not accepts(grammar, bad, special=False)


def test_content_of_a_shape_stands_where_the_family_has_its_content() -> None:
    for name, before in (("gpt-oss", "<|channel|>final<|message|>"), ("functionary-v3.2", "all\n")):
        form = find(None, name)
        constraint = JsonSchema({"type": "boolean"})
        grammar = lark(form, TOOLS, ToolChoice("auto"), constraint, token_of=as_token)
        assert accepts(grammar, before + "true", special=True)
        assert not accepts(grammar, "true", special=True)
        answer = read(form, [f"{before}true".encode()], tools=TOOLS, prompt=form.given)
        assert answer.content == "true"


def test_content_in_a_grammar_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="grammar"):
        lark(HERMES, TOOLS, ToolChoice("auto"), Grammar('root ::= "a"'), token_of=as_text)


STRINGS = [
    ({"format": "date"}, "2024-02-28", "2024-2-28"),
    ({"format": "date-time"}, "2024-02-28T01:02:03Z", "2024-02-28"),
    ({"format": "uuid"}, "01234567-89ab-cdef-0123-456789abcdef", "0123"),
    ({"format": "ipv4"}, "10.0.0.255", "10.0.0.256"),
    ({"format": "email"}, "a.b@c-d.org", "a.b"),
    ({"pattern": "b+"}, "abba", "aa"),
    ({"pattern": "^.*/x$", "maxLength": 5}, "a/b/x", "a/b/c/x"),
    ({"pattern": "^(?!a).*$"}, "anything", None),  # beyond automata: not enforced
    ({"minLength": 2}, "京都", "京"),
]


@TOKENS
@pytest.mark.parametrize("name", ["qwen3-coder", "glm-4.5", "minicpm", "hermes", "lfm2"])
@pytest.mark.parametrize(("schema", "good", "bad"), STRINGS)
def test_strings_keep_to_their_schema_in_every_notation(
    special: bool, name: str, schema: dict[str, Any], good: str, bad: str | None
) -> None:
    if bad is None and name in {"hermes", "lfm2"}:
        return
    form = find(None, name)
    weather = tool("get_weather", {"city": {"type": "string"} | schema}, ["city"])
    grammar = lark(form, [weather], REQUIRED, token_of=as_token if special else as_text)
    assert accepts(grammar, written(form, [{"city": good}]), special=special)
    assert bad is None or not accepts(grammar, written(form, [{"city": bad}]), special=special)


def test_what_a_schema_asks_beyond_the_engine_is_an_error_only_if_strict() -> None:
    odd = tool("odd", {"n": {"type": "string", "format": "phone"}}, ["n"])
    loose = lark(HERMES, [odd], REQUIRED, token_of=as_text)
    assert not llguidance.LLMatcher.validate_grammar(
        llguidance.LLMatcher.grammar_from_lark(loose), tokenizer()
    )
    strict = {**odd, "function": odd["function"] | {"strict": True}}
    tight = lark(HERMES, [strict], REQUIRED, token_of=as_text)
    problem = llguidance.LLMatcher.validate_grammar(
        llguidance.LLMatcher.grammar_from_lark(tight), tokenizer()
    )
    assert "phone" in problem
