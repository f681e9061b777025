"""Grammars hold whatever the model: random weights write valid JSON and valid calls."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest

from edged.protocol import (
    Grammar,
    JsonSchema,
    Messages,
    Regex,
    Sampling,
    Text,
    ToolChoice,
)
from edged.worker import output
from edged.worker.llamacpp import library
from edged.worker.llamacpp.constrain import Grammars
from edged.worker.llamacpp.engine import LlamaCppEngine
from edged.worker.llamacpp.grammar_text import text_of
from edged.worker.llamacpp.vocabulary import Vocab
from tests.llamacpp.support import (
    EDGE_GUIDE,
    GREEDY,
    Answer,
    ask,
    begun_with,
    chat,
    choices,
    launch,
    needs_llama_cpp,
    request,
    running,
    wait_for,
)
from tests.models.cache import UnavailableError
from tests.models.source import llama_cpp_vocabulary
from tests.models.tiny import tiny

pytestmark = needs_llama_cpp


@pytest.fixture
async def random_engine() -> AsyncIterator[LlamaCppEngine]:
    """Random weights on the vocabulary of edge-guide."""
    async with running(launch(tiny("plain"), context=1024)) as loaded:
        yield loaded


@pytest.fixture
async def engine() -> AsyncIterator[LlamaCppEngine]:
    async with running(launch(context=1024)) as loaded:
        yield loaded


WORD = {"type": "string", "maxLength": 12}
SCHEMAS: dict[str, dict[str, Any]] = {
    "nested": {
        "type": "object",
        "properties": {
            "name": WORD,
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "address": {
                "type": "object",
                "properties": {
                    "street": WORD,
                    "flat": {"type": ["integer", "null"], "maximum": 99},
                },
                "required": ["street", "flat"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "age", "address"],
        "additionalProperties": False,
    },
    "enum": {
        "type": "object",
        "properties": {"state": {"enum": ["ready", "draining", 3, None, True]}},
        "required": ["state"],
        "additionalProperties": False,
    },
    "array": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "minItems": 2,
        "maxItems": 4,
    },
    "any of": {
        "type": "object",
        "properties": {
            "value": {
                "anyOf": [
                    {"type": "string", "maxLength": 5},
                    {"type": "number", "minimum": -5, "maximum": 5},
                    {
                        "type": "object",
                        "properties": {"x": {"const": "y"}},
                        "required": ["x"],
                        "additionalProperties": False,
                    },
                ]
            }
        },
        "required": ["value"],
        "additionalProperties": False,
    },
    "references": {
        "$ref": "#/$defs/list",
        "$defs": {
            "list": {
                "type": "object",
                "properties": {
                    "head": {"$ref": "#/$defs/digit"},
                    "tail": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "null"}]},
                },
                "required": ["head", "tail"],
                "additionalProperties": False,
            },
            "digit": {"type": "integer", "minimum": 0, "maximum": 9},
        },
    },
    "patterns": {
        "type": "object",
        "properties": {
            "plate": {"type": "string", "pattern": "^[A-Z]{1,3}-[A-Z]{1,2} [1-9][0-9]{0,3}$"},
            "when": {"type": "string", "format": "date"},
            "id": {"type": "string", "format": "uuid"},
        },
        "required": ["plate", "when", "id"],
        "additionalProperties": False,
    },
    "unicode": {
        "type": "object",
        "properties": {
            "größe 🦊": {"enum": ["klein", "groß", "很大"]},
            "文字": {"type": "string", "pattern": "^[一-龥]{1,4}$"},
            'quo"te\\': {"type": "boolean"},
        },
        "required": ["größe 🦊", "文字", 'quo"te\\'],
        "additionalProperties": False,
    },
    "optional": {
        "type": "object",
        "properties": {"a": WORD, "b": {"type": "boolean"}, "c": {"type": "null"}},
        "additionalProperties": False,
    },
}
MOST = 400  # tokens of an answer
DICE = [
    Sampling(temperature=0.0),
    *(Sampling(temperature=0.8, seed=seed) for seed in range(3)),
    *(Sampling(temperature=2.0, seed=seed) for seed in range(3)),
    Sampling(temperature=1.0, top_p=0.9, top_k=40, min_p=0.05, seed=9),
    Sampling(temperature=1.0, repeat_penalty=1.3, presence_penalty=1.0, seed=10),
    Sampling(temperature=1.0, dry_multiplier=0.8, xtc_probability=0.5, seed=11),
    Sampling(temperature=1.0, typical_p=0.5, seed=12),
    Sampling(temperature=1.0, ignore_eos=True, min_tokens=300, seed=13),
]


async def ask_all(
    engine: LlamaCppEngine, prompt: Any = "Hello", dice: list[Sampling] = DICE, **more: Any
) -> list[Answer]:
    """Ask with each way of sampling, all at once."""
    return await asyncio.gather(
        *(ask(engine, prompt, **({"sampling": said, "max_tokens": MOST} | more)) for said in dice)
    )


# ── content ──


@pytest.mark.parametrize("name", SCHEMAS)
async def test_random_weights_write_json_of_a_schema(
    random_engine: LlamaCppEngine, name: str
) -> None:
    schema = SCHEMAS[name]
    answers = await ask_all(random_engine, constraint=JsonSchema(schema))
    for answer in answers:
        assert answer.done.reason == "stop", answer.content
        jsonschema.validate(json.loads(answer.content), schema)
    assert len({answer.content for answer in answers}) > 1


async def test_random_weights_write_some_object(random_engine: LlamaCppEngine) -> None:
    """Nothing bounds such an answer: what ends is an object, the rest the beginning of one."""
    answers = await ask_all(random_engine, constraint=JsonSchema({"type": "object"}))
    for answer in answers:
        assert answer.content.startswith("{")
        if answer.done.reason == "stop":
            assert isinstance(json.loads(answer.content), dict)
        else:
            assert answer.done.usage.completion_tokens == MOST
    assert any(answer.done.reason == "stop" for answer in answers)


@pytest.mark.parametrize(
    "pattern",
    [
        "(yes|no|maybe)",
        "[A-Z]{2}[0-9]{4}",
        r"\+[1-9][0-9]{1,2} \([0-9]{3}\) [0-9]{3}",
        "[一-龥]{3,6}。",
        "🦊{2,3}",
    ],
)
async def test_random_weights_match_a_pattern(random_engine: LlamaCppEngine, pattern: str) -> None:
    for answer in await ask_all(random_engine, constraint=Regex(pattern)):
        assert answer.done.reason == "stop"
        assert re.fullmatch(pattern, answer.content), answer.content


GBNF = """
# a shopping list
root ::= item{1,3} "sum: " number "\\n"
item ::= "- " [a-z]{1,8} (" \\u00d7" digit)? "\\n"   # perhaps several of them
number ::= digit+ "." [0-9]{2}
digit ::= [0-9]
"""
LARK = """
start: greeting ("," " " NAME){1,2} "!"
greeting: "Hello" | "你好"
NAME: /[A-Z][a-z]{1,6}/
"""


async def test_random_weights_follow_a_grammar(random_engine: LlamaCppEngine) -> None:
    dice = [Sampling(temperature=1.0, seed=seed) for seed in range(8)]
    shape = "(- [a-z]{1,8}( \u00d7[0-9])?\n){1,3}sum: [0-9]+[.][0-9]{2}\n"
    for answer in await ask_all(random_engine, dice=dice, constraint=Grammar(GBNF)):
        assert answer.done.reason == "stop"
        assert re.fullmatch(shape, answer.content), answer.content
    for answer in await ask_all(random_engine, dice=dice, constraint=Grammar(LARK)):
        assert re.fullmatch("(Hello|你好)(, [A-Z][a-z]{1,6}){1,2}!", answer.content), answer.content


async def test_constraint_holds_for_plain_prompts(random_engine: LlamaCppEngine) -> None:
    answer = await ask(random_engine, Text("The state is "), constraint=Regex("(ready|draining)"))
    assert answer.content in {"ready", "draining"}
    assert answer.done.reason == "stop"


async def test_too_few_tokens_end_with_length(random_engine: LlamaCppEngine) -> None:
    schema = JsonSchema(SCHEMAS["nested"])
    cut = await ask(random_engine, "Hello", constraint=schema, max_tokens=5)
    assert (cut.done.reason, cut.done.usage.completion_tokens) == ("length", 5)
    whole = await ask(random_engine, "Hello", constraint=schema)
    assert whole.content.startswith(cut.content)


async def test_model_keeps_its_wits_inside_a_schema(engine: LlamaCppEngine) -> None:
    """The trained model answers as without a schema, in JSON."""
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "maxLength": 300}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    answer = await ask(engine, "What is edged?", constraint=JsonSchema(schema), max_tokens=200)
    assert answer.done.reason == "stop"
    assert len(json.loads(answer.content)["answer"]) > 0


# ── reasoning ──


def thinking(*turns: str, **more: Any) -> Messages:
    return Messages(chat(*turns).messages, template_kwargs={"enable_thinking": True}, **more)


async def test_reasoning_is_free_and_the_content_is_not(engine: LlamaCppEngine) -> None:
    with begun_with(engine, "<think>\nLet me see."):
        answers = await ask_all(
            engine,
            thinking("What is edged?"),
            [GREEDY, *(Sampling(temperature=0.7, seed=seed) for seed in range(4))],
            constraint=Regex("(good|bad)"),
            reasoning_budget=60,
        )
    for answer in answers:
        assert answer.reasoning.startswith("Let me see.")
        assert answer.content in {"good", "bad"}
        assert 0 < answer.done.usage.reasoning_tokens <= 60
        assert answer.done.reason == "stop"


async def test_random_weights_may_think_before_json(random_engine: LlamaCppEngine) -> None:
    with begun_with(random_engine, "<think>"):
        answers = await ask_all(
            random_engine,
            thinking("Hi"),
            DICE[:4],
            constraint=JsonSchema(SCHEMAS["enum"]),
            reasoning_budget=20,
        )
    for answer in answers:
        assert answer.reasoning
        jsonschema.validate(json.loads(answer.content), SCHEMAS["enum"])


@pytest.mark.parametrize("budget", [0, 1, 7])
async def test_reasoning_ends_with_its_budget(engine: LlamaCppEngine, budget: int) -> None:
    with begun_with(engine, "<think>\nOne two three four five six"):
        answer = await ask(
            engine, thinking("What is edged?"), reasoning_budget=budget, max_tokens=120
        )
    assert "think" not in answer.content
    assert answer.content
    # The tag that opens it is a token of it as well.
    assert answer.done.usage.reasoning_tokens <= max(budget, 1)
    free = await ask(engine, thinking("What is edged?"), max_tokens=200)
    assert free.done.usage.reasoning_tokens > 7


# ── calls ──


def tool(name: str, properties: dict[str, Any], *required: str, strict: bool = False) -> Any:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
    function = {"name": name, "description": f"does {name}", "parameters": parameters}
    return {"type": "function", "function": function | ({"strict": True} if strict else {})}


TOOLS = [
    tool(
        "get_weather",
        {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
        "city",
    ),
    tool("add", {"a": {"type": "integer", "maximum": 999, "minimum": 0}, "b": {"const": 5}}, "a"),
    tool(
        "send",
        {
            "to": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
            "urgent": {"type": "boolean"},
        },
        "to",
        "urgent",
        strict=True,
    ),
]
PARAMETERS = {t["function"]["name"]: t["function"]["parameters"] for t in TOOLS}


def with_tools(text: str = "Hello") -> Messages:
    return Messages(chat(text).messages, tools=TOOLS)


def assert_calls(answer: Answer, names: set[str]) -> None:
    """Calls alone, of these tools; random weights may go on with one more until they are cut."""
    calls = answer.calls
    assert calls
    assert not answer.content
    if answer.done.reason == "length":
        assert answer.done.usage.completion_tokens == MOST
        calls = calls[:-1]
    else:
        assert answer.done.reason == "tool_calls"
    for call in calls:
        assert call.name in names
        jsonschema.validate(call.arguments, PARAMETERS[call.name])
    assert len({call.id for call in answer.calls}) == len(answer.calls)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        (ToolChoice("required"), {"get_weather", "add", "send"}),
        (ToolChoice("required", ["add"]), {"add"}),
        (ToolChoice("required", ["get_weather", "send"]), {"get_weather", "send"}),
        (ToolChoice("required", parallel=False), {"get_weather", "add", "send"}),
    ],
)
async def test_random_weights_make_valid_calls(
    random_engine: LlamaCppEngine, choice: ToolChoice, names: set[str]
) -> None:
    answers = await ask_all(random_engine, with_tools(), tool_choice=choice)
    for answer in answers:
        assert_calls(answer, names)
        assert choice.parallel or len(answer.calls) == 1
    assert {call.name for answer in answers for call in answer.calls} == names


@pytest.mark.parametrize("name", [row.name for row in output.FORMATS])
async def test_calls_are_valid_in_the_manner_of_every_family(name: str) -> None:
    launched = msgspec.structs.replace(launch(tiny("plain"), context=1024), output_format=name)
    async with running(launched) as engine:
        one = ToolChoice("required", parallel=False)
        answers = await ask_all(
            engine, with_tools(), DICE[:6], tool_choice=one, reasoning_budget=20
        )
        named = ToolChoice("required", ["send"], parallel=False)
        answers += await ask_all(
            engine, with_tools(), DICE[:2], tool_choice=named, reasoning_budget=20
        )
    for answer in answers:
        assert_calls(answer, set(PARAMETERS))
        assert len(answer.calls) == 1
    assert {answer.calls[0].name for answer in answers[-2:]} == {"send"}


@pytest.mark.parametrize("name", ["gpt-oss", "mistral", "llama3", "command-r7b"])
async def test_content_is_constrained_in_the_manner_of_its_family(name: str) -> None:
    launched = msgspec.structs.replace(launch(tiny("plain"), context=1024), output_format=name)
    async with running(launched) as engine:
        for prompt in (chat("Hello"), thinking("Hello")):
            for answer in await ask_all(
                engine,
                prompt,
                DICE[:5],
                constraint=JsonSchema(SCHEMAS["enum"]),
                reasoning_budget=10,
            ):
                assert answer.done.reason == "stop"
                jsonschema.validate(json.loads(answer.content), SCHEMAS["enum"])


async def test_strings_hold_no_tags(engine: LlamaCppEngine) -> None:
    """A model that wants to end a call in the middle of a string has to close the string first."""
    answer = await ask(
        engine, with_tools("What is the weather in Paris?"), tool_choice=ToolChoice("required")
    )
    assert_calls(answer, set(PARAMETERS))
    assert not any("tool_call" in call.text for call in answer.calls)


async def test_call_that_is_cut_ends_with_length(random_engine: LlamaCppEngine) -> None:
    answer = await ask(
        random_engine, with_tools(), tool_choice=ToolChoice("required"), max_tokens=14
    )
    assert answer.done.reason == "length"


@pytest.mark.parametrize("parallel", [True, False])
async def test_free_answer_that_begins_a_call_has_to_finish_it(
    random_engine: LlamaCppEngine, parallel: bool
) -> None:
    with begun_with(random_engine, "I will look.\n<tool_call>"):
        answers = await ask_all(
            random_engine, with_tools(), tool_choice=ToolChoice(parallel=parallel)
        )
    for answer in answers:
        assert answer.content == "I will look."
        answer.content = ""
        assert_calls(answer, set(PARAMETERS))
        assert parallel or len(answer.calls) == 1


async def test_allowed_tools_bind_free_answers_too(random_engine: LlamaCppEngine) -> None:
    with begun_with(random_engine, '<tool_call>\n{"name": "'):
        answers = await ask_all(
            random_engine, with_tools(), tool_choice=ToolChoice("auto", ["add", "send"])
        )
    for answer in answers:
        assert_calls(answer, {"add", "send"})


@pytest.mark.parametrize(
    ("name", "begun"),
    [
        ("llama3", '{"name": "add", "parameters": {'),
        ("gpt-oss", "<|channel|>commentary to=functions.add <|constrain|>json<|message|>"),
        ("qwen3-coder", "<tool_call>\n<function="),
        ("mistral", "[TOOL_CALLS]"),
        ("lfm2", "<|tool_call_start|>["),
    ],
)
async def test_call_that_is_begun_in_the_manner_of_its_family_is_finished(
    name: str, begun: str
) -> None:
    launched = msgspec.structs.replace(launch(tiny("plain"), context=1024), output_format=name)
    async with running(launched) as engine:
        with begun_with(engine, begun):
            answers = await ask_all(
                engine, with_tools(), DICE[:6], tool_choice=ToolChoice(parallel=False)
            )
    for answer in answers:
        assert_calls(answer, {"add"} if "add" in begun else set(PARAMETERS))
        assert len(answer.calls) == 1


async def test_free_answer_may_stay_without_calls(engine: LlamaCppEngine) -> None:
    answer = await ask(engine, with_tools("What is edged?"), max_tokens=40)
    plain = await ask(
        engine, with_tools("What is edged?"), max_tokens=40, tool_choice=ToolChoice("none")
    )
    without = await ask(engine, "What is edged?", max_tokens=40)
    assert plain.content == without.content
    assert plain.done.usage.prompt_tokens == without.done.usage.prompt_tokens
    assert answer.done.usage.prompt_tokens > without.done.usage.prompt_tokens


async def test_call_syntax_is_text_where_no_tool_may_be_called(engine: LlamaCppEngine) -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    with begun_with(engine, call):
        answer = await ask(engine, with_tools(), tool_choice=ToolChoice("none"), max_tokens=60)
    assert not answer.calls
    assert answer.content.startswith(call)


async def test_content_obeys_its_schema_or_a_tool_is_called(random_engine: LlamaCppEngine) -> None:
    schema = SCHEMAS["enum"]
    one = ToolChoice(parallel=False)
    asked = {"prompt": with_tools(), "constraint": JsonSchema(schema), "tool_choice": one}
    answers = await ask_all(random_engine, **asked)
    with begun_with(random_engine, "<tool_call>"):
        answers += await ask_all(random_engine, dice=DICE[:4], **asked)
    for answer in answers:
        if answer.calls:
            assert_calls(answer, set(PARAMETERS))
        else:
            jsonschema.validate(json.loads(answer.content), schema)
    assert any(answer.calls for answer in answers)
    assert not all(answer.calls for answer in answers)


async def test_thinking_may_come_before_a_demanded_call(random_engine: LlamaCppEngine) -> None:
    with begun_with(random_engine, "<think>\nHm"):
        answers = await ask_all(
            random_engine,
            thinking("Hi", tools=TOOLS),
            DICE[:5],
            tool_choice=ToolChoice("required"),
            reasoning_budget=10,
        )
    for answer in answers:
        assert answer.reasoning.startswith("Hm")
        assert_calls(answer, set(PARAMETERS))


# ── in company ──


async def test_constrained_neighbours_do_not_disturb_free_answers(engine: LlamaCppEngine) -> None:
    questions = ["What is edged?", "How do I add a model?", "你好 日志在哪里", "Who are you?"]
    async with running(launch(context=1024)) as fresh:
        alone = await choices(fresh, questions, together=False, max_tokens=48)
    neighbours = asyncio.gather(
        ask_all(engine, dice=DICE[:2], constraint=JsonSchema(SCHEMAS["nested"])),
        ask_all(engine, with_tools(), DICE[:2], tool_choice=ToolChoice("required")),
    )
    together = await choices(engine, questions, together=True, max_tokens=48)
    constrained, called = await neighbours
    same = [mine.same_as(theirs) for mine, theirs in zip(together, alone, strict=True)]
    assert sum(same) >= 0.75 * len(same)
    for answer in constrained:
        jsonschema.validate(json.loads(answer.content), SCHEMAS["nested"])
    for answer in called:
        assert_calls(answer, set(PARAMETERS))


async def test_abort_in_the_middle_leaves_nothing(random_engine: LlamaCppEngine) -> None:
    async def begin_and_leave() -> None:
        endless = JsonSchema({"type": "array", "items": {"type": "boolean"}, "minItems": 500})
        events = random_engine.generate(request("Hi", constraint=endless))
        for _ in range(5):
            await anext(events)
        await events.aclose()

    await asyncio.gather(*(begin_and_leave() for _ in range(8)))
    await wait_for(lambda: random_engine._thread.scheduler.idle)
    assert not random_engine._thread._by_id
    assert not random_engine._thread._generations
    answer = await ask(random_engine, "Hi", constraint=Regex("[a-c]{3}"))
    assert re.fullmatch("[a-c]{3}", answer.content)


# ── vocabularies ──


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "gpt-2", "deepseek-llm", "qwen2"])
async def test_grammar_knows_every_kind_of_vocabulary(name: str) -> None:
    """With a space before every word, with bytes as tokens, with 152,000 of them."""
    lib = library.open_library()
    settings = lib.llama_model_default_params()
    settings.vocab_only = True
    try:
        path = llama_cpp_vocabulary(name)
    except UnavailableError as error:
        pytest.skip(str(error))
    model = lib.llama_model_load_from_file(str(path).encode(), settings)
    vocab = Vocab(lib, model, output.SHOWN_TOKENS)
    schema = {
        "type": "object",
        "properties": {
            "a key of several words, 你好": {"const": "the one and only välue 🦊"},
            "n": {"type": "integer", "minimum": -999, "maximum": 999},
            "s": {"type": "string", "maxLength": 12},
        },
        "required": ["a key of several words, 你好", "n", "s"],
        "additionalProperties": False,
    }
    grammars = Grammars(vocab)
    for seed in range(5):
        guide = await grammars.guide(text_of(JsonSchema(schema)), "response_format")
        dice = np.random.default_rng(seed)
        written = b""
        while not guide.over:
            row = dice.normal(size=vocab.n_tokens).astype(np.float32)
            guide.narrow(row)
            token = int(row.argmax())
            guide.take(token)
            written += vocab.piece(token)
        jsonschema.validate(json.loads(written), schema)
    grammars.close()


# ── what cannot be enforced ──


def deep(n: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(n):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def chain(n: int) -> dict[str, Any]:
    links = {
        f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}}
        for i in range(n)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{n}": {"type": "string"}}}


BAD: list[tuple[Any, str, str]] = [
    (JsonSchema({"type": "strin"}), "response_format", "Invalid type: strin"),
    (JsonSchema({"type": "object", "properties": 5}), "response_format", "must be an object"),
    (JsonSchema({"type": "integer", "minimum": 5, "maximum": 3}), "response_format", "greater"),
    (
        JsonSchema({"type": "object", "properties": {"a": False}, "required": ["a"]}),
        "response_format",
        "Unsatisfiable",
    ),
    (JsonSchema({"not": {"type": "string"}}), "response_format", 'Unimplemented keys: ["not"]'),
    (JsonSchema({"type": "array", "uniqueItems": True}), "response_format", "uniqueItems"),
    (
        JsonSchema({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}),
        "response_format",
        "uniqueItems",
    ),
    (JsonSchema({"$ref": "https://example.com/a.json"}), "response_format", "not fetch"),
    (JsonSchema({"$ref": "#/$defs/missing"}), "response_format", "missing"),
    (
        JsonSchema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
        "response_format",
        "",
    ),
    (JsonSchema({"type": "string", "pattern": "(a"}), "response_format", "unclosed group"),
    (JsonSchema({"type": "string", "pattern": "^(?!x)a"}), "response_format", "look-around"),
    (JsonSchema(deep(3000)), "response_format", "too deep"),
    (JsonSchema(deep(300)), "response_format", "recursion"),
    (JsonSchema({"enum": [f"x{i}" for i in range(100_000)]}), "response_format", "at most"),
    (
        JsonSchema({"properties": {f"p{i}": {} for i in range(20_000)}}),
        "response_format",
        "at most",
    ),
    (JsonSchema(chain(100_000)), "response_format", "at most"),
    (Regex("(a"), "grammar", "unclosed group"),
    (Regex("(?=a)b"), "grammar", "look-around"),
    (Regex(r"[^\s\S]"), "grammar", "no text can match"),
    (Regex("(" * 10_000 + "a" + ")" * 10_000), "grammar", "nest"),
    (Regex("a" * 300_000), "grammar", "at most"),
    (Grammar("start: foo"), "grammar", 'unknown name: "foo"'),
    (Grammar("start: " + "(" * 5000 + '"a"' + ")" * 5000), "grammar", "nested"),
    (Grammar("root ::= " + "(" * 5000 + '"a"' + ")" * 5000), "grammar", "nested"),
    (Grammar("root ::= foo"), "grammar", "not found"),
    (Grammar("root ::= [a-z"), "grammar", "end of input"),
    (Grammar("nonsense { ] %%"), "grammar", ""),
    (Grammar('root ::= "' + "a" * 40_000 + '"'), "grammar", "at most"),
]


@pytest.mark.parametrize(("constraint", "param", "reason"), BAD)
async def test_what_cannot_be_enforced_is_refused_with_its_reason(
    random_engine: LlamaCppEngine, constraint: Any, param: str, reason: str
) -> None:
    answer = await ask(random_engine, "Hi", constraint=constraint)
    assert answer.failed is not None, answer.content
    assert answer.started is None
    assert answer.failed.code == "invalid_value"
    assert answer.failed.param == param
    assert reason in answer.failed.message
    assert len(answer.failed.message) < 700


HEAVY = [
    JsonSchema(chain(3000)),
    JsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 10**9}),
    JsonSchema({"type": "string", "minLength": 10**6, "maxLength": 10**9}),
    JsonSchema({"anyOf": [{"properties": {f"p{j}": {} for j in range(30)}} for _ in range(200)]}),
    JsonSchema({"type": "integer", "multipleOf": 999999937}),
    Regex("a{1000000000}"),
    Regex("((a{1,1000}){1,1000}){1,1000}"),
    Regex("(a|b)*a(a|b){60}c"),
    Regex("|".join(f"(.*{i}.*){{5}}" for i in range(200))),
    Grammar('start: ((("a"{1,1000}){1,1000}){1,1000})'),
    Grammar('start: s\ns: s s | s s s | /a*/ | "a"'),
    Grammar("start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(9000)) + 'r9000: "y"'),
    Grammar(
        "start: r0\n"
        + "".join(f'r{i}: r{i + 1} r{i + 1} | "x"\n' for i in range(6000))
        + 'r6000: "y"'
    ),
    Grammar(
        "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(1500)) + 'r1500 ::= "y"'
    ),
]


@pytest.mark.parametrize("constraint", HEAVY)
async def test_monstrous_grammars_neither_kill_nor_stall(
    random_engine: LlamaCppEngine, constraint: Any
) -> None:
    """They end, well or badly, and a neighbour's answer does not wait for them."""
    heavy = asyncio.create_task(ask(random_engine, "Hi", constraint=constraint, max_tokens=60))
    started = time.monotonic()
    free = await ask(random_engine, "Hi", max_tokens=60, sampling=Sampling(ignore_eos=True))
    waited = time.monotonic() - started
    answer = await heavy
    assert free.done.usage.completion_tokens == 60
    assert answer.finish or answer.failed
    if answer.failed:
        assert answer.failed.code == "invalid_value"
    assert waited < 10, "sixty tokens of a tiny model, even on a busy machine"


async def test_tool_that_cannot_be_enforced_is_refused_if_it_wants_to_be(
    random_engine: LlamaCppEngine,
) -> None:
    odd = {"x": {"type": "array", "uniqueItems": True, "maxItems": 2, "items": {"type": "boolean"}}}
    for strict in (True, False):
        prompt = Messages(chat("Hi").messages, tools=[tool("odd", odd, "x", strict=strict)])
        for mode in ("auto", "required"):
            answer = await ask(random_engine, prompt, tool_choice=ToolChoice(mode), max_tokens=200)
            if strict:
                assert answer.failed is not None
                assert answer.failed.param == "tools"
                assert "uniqueItems" in answer.failed.message
            else:
                assert answer.finish is not None


async def test_unknown_tool_cannot_be_chosen(random_engine: LlamaCppEngine) -> None:
    for prompt, choice in [
        (with_tools(), ToolChoice("required", ["nothing"])),
        (chat("Hi"), ToolChoice("required")),
    ]:
        answer = await ask(random_engine, prompt, tool_choice=choice)
        assert answer.failed is not None
        assert answer.failed.param == "tool_choice"


def test_tiny_model_is_not_the_trained_one() -> None:
    assert tiny("plain") != Path(EDGE_GUIDE)
