"""Guessed tokens against the real engine: faster where they pay, and never another answer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from edged.protocol import JsonSchema, Launch, Sampling, Text, Tokens
from edged.worker.engine import BadModelError
from edged.worker.llamacpp import wager
from edged.worker.llamacpp.engine import LlamaCppEngine
from tests.llamacpp.support import EDGE_GUIDE, ask, choices, launch, needs_llama_cpp, running
from tests.llamacpp.test_engine import QUESTIONS, assert_same, settled
from tests.models import tiny, vocabulary
from tests.models.tiny import write_tiny

pytestmark = needs_llama_cpp

REPEATED = [
    Text("one two three four one two three four one two three four one two"),
    Text("edged reads models.toml. edged reads models.toml. edged reads"),
    "What is edged?",
]


def with_draft(
    draft: Path | None = EDGE_GUIDE, *, speculation: bool = True, model: Path = EDGE_GUIDE
) -> Launch:
    plain = launch(model)
    assert plain.llamacpp is not None
    own = replace(
        plain.llamacpp, speculation=speculation, draft=str(draft) if draft is not None else None
    )
    return replace(plain, llamacpp=own)


class Eager(wager.Costs):
    """A box on which more tokens cost nothing, so that every guess is tried."""

    def of(self, m: int) -> float | None:
        return 0.04 + 0.0 * m


@contextlib.asynccontextmanager
async def guessing(launched: Launch) -> AsyncIterator[LlamaCppEngine]:
    async with running(launched) as engine:
        engine._thread.speculation._costs = Eager()
        yield engine


async def plain_choices(prompts: list[object], **more: object) -> list[object]:
    async with running(with_draft(None, speculation=False)) as engine:
        found = await choices(engine, prompts, together=False, **more)
        assert engine.stats().guessed_tokens == 0
    return list(found)


@pytest.mark.parametrize("draft", [None, EDGE_GUIDE], ids=["from the text", "by a draft model"])
@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
async def test_greedy_answers_are_those_without_guesses(draft: Path | None, together: bool) -> None:
    prompts = [*REPEATED, *QUESTIONS]
    expected = await plain_choices(prompts, max_tokens=64)
    async with guessing(with_draft(draft)) as engine:
        found = await choices(engine, prompts, together=together, max_tokens=64)
        stats = engine.stats()
    assert_same(found, expected)
    assert 0 < stats.guessed_right <= stats.guessed_tokens


async def test_text_that_repeats_itself_is_guessed() -> None:
    answer_of = Sampling(temperature=0.0, ignore_eos=True)
    async with guessing(with_draft(None)) as engine:
        answer = await ask(engine, REPEATED[0], sampling=answer_of, max_tokens=120)
        stats, steps = engine.stats(), engine._thread.counts.progress
    assert answer.done.usage.completion_tokens == 120
    assert stats.guessed_right >= 40
    assert steps <= 120 - stats.guessed_right + 4


async def test_the_model_as_its_own_draft_is_always_right() -> None:
    async with guessing(with_draft()) as engine:
        answer = await ask(engine, "How do I add a model?", max_tokens=60)
        stats = engine.stats()
    assert answer.done.reason == "stop"
    assert stats.guessed_right >= 0.9 * stats.guessed_tokens > 20


async def test_a_seed_gives_the_same_text_with_and_without_guesses() -> None:
    dice = Sampling(temperature=0.9, top_p=0.9, seed=11)
    texts = []
    for launched in (with_draft(), with_draft(None), with_draft(None, speculation=False)):
        async with guessing(launched) as engine:
            asked = [await ask(engine, q, sampling=dice, max_tokens=40) for q in QUESTIONS[:4]]
            texts.append([answer.content for answer in asked])
    # Batches of another shape round differently: a dice may fall on the other side of a border.
    for other in texts[:2]:
        assert sum(a == b for a, b in zip(other, texts[2], strict=True)) >= 3


async def test_guesses_follow_grammar_stop_strings_and_likelihoods() -> None:
    schema = {
        "type": "object",
        "properties": {"names": {"type": "array", "items": {"type": "string"}, "maxItems": 4}},
        "required": ["names"],
        "additionalProperties": False,
    }
    asked = {
        "constraint": JsonSchema(schema),
        "max_tokens": 80,
        "logprobs": 2,
    }
    async with running(with_draft(None, speculation=False)) as engine:
        plain = await ask(engine, "What is edged?", **asked)
        stopped = await ask(engine, "How do I add a model?", stop=["models"], max_tokens=60)
    async with guessing(with_draft()) as engine:
        guessed = await ask(engine, "What is edged?", **asked)
        stopped_too = await ask(engine, "How do I add a model?", stop=["models"], max_tokens=60)
        await settled(engine)
        held = {cell for r in engine._thread.scheduler.pool.residents for cell in r.cells}
        assert engine._thread.scheduler.pool.cells.used == len(held)
        assert engine.stats().guessed_right > 0
    assert guessed.content == plain.content
    assert [c.token for c in guessed.logprobs] == [c.token for c in plain.logprobs]
    for mine, theirs in zip(guessed.logprobs, plain.logprobs, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=0.05)
    assert stopped_too.content == stopped.content
    assert stopped_too.done.usage == stopped.done.usage


async def test_answer_never_exceeds_its_limits() -> None:
    async with guessing(with_draft()) as engine:
        for n in (1, 2, 3, 7):
            answer = await ask(engine, "How do I add a model?", max_tokens=n)
            assert answer.done.usage.completion_tokens == n
        prompt = engine._runner.vocab.tokenize([("one two three " * 166, False)], wrap=True)
        full = await ask(
            engine, Tokens(prompt[:506]), sampling=Sampling(temperature=0.0, ignore_eos=True)
        )
        assert full.done.reason == "length"
        assert full.done.usage.prompt_tokens + full.done.usage.completion_tokens == 512


async def test_where_guesses_never_pay_none_are_made() -> None:
    class Dear(Eager):
        def of(self, m: int) -> float | None:
            return 0.04 * m

    async with running(with_draft()) as engine:
        engine._thread.speculation._costs = Dear()
        await ask(engine, REPEATED[0], max_tokens=60)
        assert engine.stats().guessed_tokens == 0


async def test_draft_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    words = vocabulary.small()
    other = dataclasses.replace(words, tokens=(*words.tokens[500::-1], *words.tokens[501:]))
    write_tiny(tmp_path / "other.gguf", "plain", words=other)
    with pytest.raises(BadModelError, match="another vocabulary"):
        async with running(with_draft(tmp_path / "other.gguf", model=tiny("plain"))):
            pass


async def test_draft_that_is_always_wrong_is_found_out() -> None:
    class Fair(Eager):
        def of(self, m: int) -> float | None:
            return 0.04 + 0.002 * m

    async with running(with_draft(tiny("qwen2"), model=tiny("plain"))) as engine:
        engine._thread.speculation._costs = Fair()
        asked = Sampling(temperature=0.0, ignore_eos=True)
        await ask(engine, Text("some words of nothing"), sampling=asked, max_tokens=200)
        stats = engine.stats()
    assert 0 < stats.guessed_tokens < 160, "200 steps with 8 guesses each would be 1,600"


async def test_model_that_takes_nothing_back_is_not_guessed_for() -> None:
    async with guessing(launch(tiny("recurrent"))) as engine:
        answer = await ask(engine, Text("a b a b a b a b a b a b"), max_tokens=40)
        assert answer.done.usage.completion_tokens > 0
        assert engine.stats().guessed_tokens == 0
