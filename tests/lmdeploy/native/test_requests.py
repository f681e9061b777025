"""Level C: requests through `turbomind.py` and the native module's own objects.

Proves what reaches the native side and that its answers and aborts come back; no token here was
computed, and nothing of CUDA ran.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from lmdeploy.turbomind import _tm

from edged.protocol import (
    Delta,
    Event,
    Generate,
    JsonSchema,
    Messages,
    Regex,
    Sampling,
    ToolChoice,
)
from tests.lmdeploy.contract.box import (
    CONTEXT,
    Box,
    abort_many,
    chat,
    content,
    failed,
    finish,
    open_request,
    until,
)
from tests.lmdeploy.native.conftest import NativeBox

STRICT = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
THINKING = {"enable_thinking": True}


# ── what is asked ──


async def test_answer(box: Box) -> None:
    box.says("Hello, wörld!")
    events = await box.ask("once")
    assert content(events) == "Hello, wörld!"
    usage = finish(events).usage
    assert (usage.prompt_tokens, usage.cached_tokens) == (4, 1)
    asked = box.native.asked[0]
    assert asked.tokens == list(box.engine._preparer.vocab.tokenize([("once", False)], wrap=True))
    assert asked.stream
    assert asked.grammar is None


async def test_sampling_reaches_the_native_side(box: Box) -> None:
    box.says("a")
    chosen = Sampling(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repeat_penalty=1.1, seed=-1, min_tokens=2
    )
    await box.ask(sampling=chosen, max_tokens=9)
    config = box.native.asked[-1].config
    assert (config.max_new_tokens, config.min_new_tokens) == (9, 2)
    assert (config.top_k, config.random_seed) == (7, (1 << 64) - 1)
    floats = (config.temperature, config.top_p, config.min_p, config.repetition_penalty)
    assert floats == pytest.approx((0.5, 0.9, 0.1, 1.1))
    assert config.output_logprobs == 0
    assert (config.output_logits, config.output_last_hidden_state) == (0, 0)


async def test_greedy_is_the_likeliest_token(box: Box) -> None:
    box.says("a")
    await box.ask(sampling=Sampling(temperature=0.0))
    assert box.native.asked[-1].config.top_k == 1
    await box.ask(sampling=Sampling(temperature=0.0, repeat_penalty=1.3))
    config = box.native.asked[-1].config
    assert (config.top_k, config.repetition_penalty) == (1, pytest.approx(1.3))


async def test_nothing_said_is_openais_defaults(box: Box) -> None:
    box.says("a")
    await box.ask("abc")
    config = box.native.asked[-1].config
    assert (config.temperature, config.top_p, config.top_k, config.min_p) == (1.0, 1.0, 0, 0.0)
    assert config.max_new_tokens == CONTEXT - 3


async def test_stop_tokens_are_one_each_and_strings_are_none(box: Box) -> None:
    box.says("one two</answer> three")
    (end,) = box.engine._preparer.vocab.ends
    events = await box.ask(stop=["</answer>"], stop_tokens=[5])
    assert content(events) == "one two"
    config = box.native.asked[-1].config
    assert sorted(config.eos_ids) == sorted({end, 5})
    assert sorted(config.stop_ids[0]) == sorted({end, 5})
    assert config.stop_ids[1] == [1, 2]  # offsets: each is a word of its own
    assert config.bad_ids == [[], []]


async def test_end_is_ignored_where_that_is_asked_for(box: Box) -> None:
    box.says("ab<|im_end|>c")
    events = await box.ask(sampling=Sampling(ignore_eos=True), max_tokens=4)
    assert box.native.asked[-1].config.stop_ids == [[], []]
    assert (content(events), finish(events).reason) == ("abc", "length")


async def test_likelihoods(box: Box) -> None:
    box.says("ö")
    answer = list(box.native.answer)
    other = answer[0] + 1
    box.native.likelihoods = [{other: -0.125, token: -2.0} for token in answer]
    events = await box.ask(logprobs=2)
    rows = [one for e in events if isinstance(e, Delta) for one in e.logprobs]
    assert [one.token for one in rows] == answer[:-1]
    assert [one.logprob for one in rows] == [-2.0, -2.0]
    assert [each.token for each in rows[0].top] == [other, answer[0]]
    assert box.native.asked[-1].config.output_logprobs == 2
    # the chosen token is told where it is not among the likeliest as well
    events = await box.ask(logprobs=1)
    rows = [one for e in events if isinstance(e, Delta) for one in e.logprobs]
    assert [(one.logprob, len(one.top)) for one in rows] == [(-2.0, 1), (-2.0, 1)]


# ── formats ──

CONSTRAINED: dict[str, dict[str, Any]] = {
    "schema of a text": {"constraint": JsonSchema({"type": "object"})},
    "pattern of a text": {"constraint": Regex("[ab]{2,5}")},
    "schema after reasoning": {
        "prompt": chat(),
        "constraint": JsonSchema({"type": "object", "properties": {"a": {"type": "integer"}}}),
    },
    "schema after opened reasoning": {
        "prompt": chat(template_kwargs=THINKING),
        "constraint": JsonSchema({"type": "object"}),
    },
    "pattern after opened reasoning": {
        "prompt": chat(template_kwargs=THINKING),
        "constraint": Regex("a+"),
    },
    "no reasoning": {
        "prompt": chat(),
        "constraint": JsonSchema({"type": "object"}),
        "reasoning_budget": 0,
    },
    "demanded call": {"prompt": chat(tools=[STRICT]), "tool_choice": ToolChoice("required")},
    "one demanded call": {
        "prompt": chat(tools=[STRICT]),
        "tool_choice": ToolChoice("required", parallel=False),
    },
    "call or content": {
        "prompt": chat(tools=[STRICT]),
        "constraint": JsonSchema({"type": "object"}),
    },
    "strict tools": {"prompt": chat(tools=[STRICT])},
}


@pytest.mark.parametrize("name", CONSTRAINED)
async def test_every_form_of_format_compiles_and_is_set(box: Box, name: str) -> None:
    box.says("{}")
    finish(await box.ask(**CONSTRAINED[name]))
    assert isinstance(box.native.asked[-1].grammar, _tm.CompiledGrammar)
    finish(await box.ask())
    assert box.native.asked[-1].grammar is None  # it does not stay with the handle


async def test_format_that_is_dropped_fails_the_request(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`turbomind.py` goes on without a grammar where its compiler refuses one by ValueError."""

    def refuse(*_: Any) -> Any:
        raise ValueError("not this one")

    box.says("free text")
    monkeypatch.setattr("lmdeploy.turbomind.turbomind.compile_response_format", refuse)
    events = await box.ask(constraint=JsonSchema({"type": "object"}))
    assert failed(events).code == "internal_error"
    assert "format" in failed(events).message
    assert not content(events)
    await box.idle()
    assert not box.native.running


async def test_grammar_that_only_the_native_compiler_refuses(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("not this one")

    monkeypatch.setattr("lmdeploy.turbomind.turbomind.compile_response_format", refuse)
    assert failed(await box.ask(constraint=Regex("a"))).code == "internal_error"
    await box.idle()
    assert not box.native.asked
    monkeypatch.undo()
    box.says("still here")
    assert content(await box.ask()) == "still here"


# ── states and ends ──


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (1, "unavailable"),
        (5, "internal_error"),
        (6, "context_length_exceeded"),
        (8, "shutting_down"),
        (10, "unavailable"),
        (11, "internal_error"),
    ],
)
async def test_status_of_the_native_side(box: Box, status: int, code: str) -> None:
    box.says("abc")
    box.native.status = status
    assert failed(await box.ask()).code == code


async def abandoned(box: Box, events: Any) -> None:
    waiting = asyncio.ensure_future(anext(events))
    await until(lambda: box.native.running == 1)
    waiting.cancel()
    await asyncio.wait({waiting})


async def test_abort_is_one_cancel_and_waits_for_the_last_word(box: Box) -> None:
    box.native.hold(is_held=True)
    box.says("abc")
    await abandoned(box, await open_request(box))
    await box.idle()
    assert (box.native.running, box.faults) == (0, 0)
    assert box.native.cancelled >= 1


async def test_native_side_that_never_says_its_last_word_costs_the_worker(folder: Path) -> None:
    made = NativeBox(folder, abort_s=0.3)
    await made.engine.load(made.launch, lambda _: None)
    made.native.is_deaf = True
    made.native.hold(is_held=True)
    made.says("abc")
    await abandoned(made, await open_request(made))
    assert made.faults == 1
    made.native.close()


async def test_five_hundred_aborts_leave_nothing(box: Box) -> None:
    reached = await abort_many(box, 500, random.Random(11))
    assert reached.total() == 500
    await box.idle()
    assert (box.native.running, box.faults) == (0, 0)
    box.says("still here")
    assert content(await box.ask()) == "still here"


async def test_conversations_side_by_side_stay_apart(box: Box) -> None:
    async def one(n: int) -> list[Event]:
        prompt = Messages([{"role": "user", "content": str(n)}])
        request = Generate(prompt, max_tokens=1 + n % 7, id=n)
        return [event async for event in box.engine.generate(request)]

    box.says("abcdefgh")
    for n, events in enumerate(await asyncio.gather(*(one(n) for n in range(40)))):
        assert content(events) == "abcdefgh"[: 1 + n % 7]
