"""Every logit that an answer is chosen from is llama.cpp's own, whatever happens around it.

Tolerances are in logits, whose spread is about 2.4 in all these models. Measured in float32
(`precise`): up to 6e-5 with every trait but one, 2e-5 on edge-guide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from edged.protocol import Finish, Generate, Launch, Prompt, Sampling, Stats, Tokens
from edged.worker.llamacpp.engine import LlamaCppEngine
from edged.worker.llamacpp.step import Batch
from tests.llamacpp.logits import Heard, listening, plain, precise
from tests.llamacpp.support import (
    EDGE_GUIDE,
    chat,
    launch,
    needs_llama_cpp,
    request,
    running,
)
from tests.llamacpp.test_saved import cached, saving
from tests.llamacpp.test_speculation import guessing
from tests.models import UnavailableError, float_guide, tiny
from tests.models.tiny import WRITING, Trait

pytestmark = needs_llama_cpp

TOLERANCE = 5e-4
# gemma's GELU is looked up in a table of half floats: measured 5e-3.
TOLERANCE_OF: dict[Trait, float] = {"swa": 0.03}
# edge-guide as it is shipped: Q8_0 rounds activations to eight bits, so that a last bit becomes
# tenths. Measured between batches above and below 64 tokens: 0.37.
TOLERANCE_Q8 = 0.8
SHAREABLE = {"plain", "untied", "qwen2", "moe", "mla", "mrope"}

Opened = Callable[[Launch], AbstractAsyncContextManager[LlamaCppEngine]]

NO_END = Sampling(temperature=0.0, ignore_eos=True)
PROMPT = [5 + (i * 37) % 200 for i in range(90)]  # longer than the tiny models' window
QUESTIONS = [
    "What is edged?",
    "How do I add a model?",
    "你好 日志在哪里",
    "Where do I find the logs of edged?",
    "How can I get an API key?",
    "怎么删除一个模型",
    "Tell me something about 🦊 and 🐧, please.",
    "What does the state backoff mean?",
]


def built(trait: Trait | None) -> Path:
    try:
        return float_guide() if trait is None else tiny(trait)
    except UnavailableError as error:
        pytest.skip(str(error))


async def run(engine: LlamaCppEngine, asked: Generate) -> Finish:
    end = [event async for event in engine.generate(asked)][-1]
    assert isinstance(end, Finish)
    return end


async def hear(
    launched: Launch,
    prompts: Sequence[Prompt],
    *,
    together: bool,
    disturbed: bool = False,
    opened: Opened = running,
    **more: Any,
) -> tuple[list[Heard], list[Finish], Stats]:
    """Ask a fresh engine for all answers, at once or one after the other.

    `disturbed`: every few steps one is broken off somewhere in its middle.
    """
    asked = [request(prompt, **({"sampling": NO_END} | more)) for prompt in prompts]
    async with opened(launched) as engine:
        with listening(engine) as heard:
            if not together:
                ends = [await run(engine, one) for one in asked]
            elif disturbed:
                ends = await disturb(engine, asyncio.gather(*(run(engine, one) for one in asked)))
            else:
                ends = await asyncio.gather(*(run(engine, one) for one in asked))
        return [heard[one.id] for one in asked], ends, engine.stats()


async def disturb(engine: LlamaCppEngine, task: asyncio.Future[list[Finish]]) -> list[Finish]:
    """Interrupt every third step or so, forty in all: some models begin anew after each."""
    n_interrupted = last = 0
    interrupted = engine._thread.scheduler.interrupted

    def count(batch: Batch) -> None:
        nonlocal n_interrupted
        n_interrupted += 1
        interrupted(batch)

    engine._thread.scheduler.interrupted = count  # type: ignore[method-assign]
    while not task.done():
        await asyncio.sleep(0)
        if n_interrupted < 40 and engine.stats().progress >= last + 3:
            last = engine.stats().progress
            engine._runner._interrupt.set()  # also of models that `interrupt` spares
    assert n_interrupted > 0
    return task.result()


def assert_llama_cpps(found: list[Heard], launched: Launch, tolerance: float) -> None:
    with plain(launched) as peer:
        assert max(one.difference(peer) for one in found) < tolerance


# ── every trait ──


@pytest.mark.parametrize("trait", WRITING)
async def test_single_sequence_has_llama_cpps_logits(trait: Trait) -> None:
    launched = precise(launch(built(trait), context=192, parallel=2, batch=17))
    found, _, _ = await hear(launched, [Tokens(PROMPT)], together=False, max_tokens=24)
    assert len(found[0].rows) == 24
    assert_llama_cpps(found, launched, TOLERANCE_OF.get(trait, TOLERANCE))


@pytest.mark.parametrize("trait", WRITING)
async def test_shared_and_preempted_sequences_have_llama_cpps_logits(trait: Trait) -> None:
    launched = precise(launch(built(trait), context=112, parallel=4, pool=150, batch=24))
    prompts = [Tokens(PROMPT[:50] + [i] * i) for i in range(1, 7)]
    found, ends, stats = await hear(launched, prompts, together=True, max_tokens=50)
    assert stats.preemptions > 0
    if trait in SHAREABLE:
        assert sum(end.usage.cached_tokens >= 50 for end in ends) >= 2
    assert_llama_cpps(found, launched, TOLERANCE_OF.get(trait, TOLERANCE))


@pytest.mark.parametrize("trait", WRITING)
async def test_interrupted_sequences_have_llama_cpps_logits(trait: Trait) -> None:
    launched = precise(launch(built(trait), context=128, parallel=4, batch=24))
    prompts = [Tokens(PROMPT[i:]) for i in range(4)]
    found, _, _ = await hear(launched, prompts, together=True, disturbed=True, max_tokens=16)
    assert_llama_cpps(found, launched, TOLERANCE_OF.get(trait, TOLERANCE))


# ── a trained model: the same text, behind its natural end too ──


@pytest.mark.parametrize(
    ("how", "pool", "disturbed"),
    [("batched", 8 * 128, False), ("preempted", 160, False), ("interrupted", 8 * 128, True)],
)
async def test_greedy_text_is_that_of_the_plain_run(how: str, pool: int, disturbed: bool) -> None:
    path = built(None)
    prompts = [chat(question) for question in QUESTIONS]
    alone, _, _ = await hear(
        precise(launch(path, context=128)), prompts, together=False, max_tokens=60
    )
    launched = precise(launch(path, context=128, parallel=4, pool=pool))
    found, _, stats = await hear(
        launched, prompts, together=True, disturbed=disturbed, max_tokens=60
    )
    assert (stats.preemptions > 0) == (how == "preempted")
    assert [one.chosen for one in found] == [one.chosen for one in alone]
    assert_llama_cpps(alone + found, launched, TOLERANCE)


async def test_shared_prefix_gives_the_text_of_the_plain_run() -> None:
    path = built(None)
    prompts = [chat(question) for question in QUESTIONS]
    for prompt in prompts:
        prompt.messages.insert(0, {"role": "system", "content": "You guide people. " * 12})
    alone, _, _ = await hear(
        precise(launch(path, context=256)),
        prompts[:1],
        together=False,
        max_tokens=40,
    )
    launched = precise(launch(path, context=256))
    found, ends, _ = await hear(launched, prompts, together=True, max_tokens=40)
    assert sum(end.usage.cached_tokens > 50 for end in ends) == len(prompts) - 1
    assert found[0].chosen == alone[0].chosen
    assert_llama_cpps(found, launched, TOLERANCE)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
async def test_guessed_tokens_give_the_text_of_the_plain_run(*, together: bool) -> None:
    path = built(None)
    prompts = [chat(question) for question in QUESTIONS]
    launched = precise(launch(path, context=128))
    assert launched.llamacpp is not None
    alone, _, stats = await hear(
        replace(launched, llamacpp=replace(launched.llamacpp, speculation=False)),
        prompts,
        together=False,
        max_tokens=60,
    )
    assert stats.guessed_tokens == 0
    # The same model in eight bits guesses, right for the most part.
    guessed = replace(launched, llamacpp=replace(launched.llamacpp, draft=str(EDGE_GUIDE)))
    found, _, stats = await hear(
        guessed, prompts, together=together, opened=guessing, max_tokens=60
    )
    assert 0 < stats.guessed_right < stats.guessed_tokens
    assert [one.chosen for one in found] == [one.chosen for one in alone]
    assert_llama_cpps(found, launched, TOLERANCE)


async def test_restored_prefix_gives_the_text_of_the_plain_run(tmp_path: Path) -> None:
    path = built(None)
    turns = ("What is edged? " * 30, "A daemon.", "How do I add a model?")
    launched = precise(launch(path, context=256))
    more: dict[str, Any] = {"together": False, "max_tokens": 60}
    alone, _, _ = await hear(launched, [chat(*turns)], **more)
    saved = cached(launched, tmp_path)
    await hear(saved, [chat(*turns[:1]), chat(*turns)], opened=saving, **more)
    found, ends, stats = await hear(saved, [chat(*turns)], opened=saving, **more)
    assert stats.restored_tokens >= ends[0].usage.cached_tokens > 100
    assert found[0].chosen == alone[0].chosen
    assert_llama_cpps(alone + found, launched, TOLERANCE)


async def test_several_answers_share_their_prompt_and_nothing_else() -> None:
    """As `n` asks for them: each is the one that its seed gives alone."""
    path, n = built(None), 5
    launched = precise(launch(path, context=256))
    dice = [Sampling(temperature=4.0, seed=seed) for seed in range(n)]
    prompt = chat("What is edged? " * 6)
    alone = []
    for each in dice:
        (one,), _, _ = await hear(launched, [prompt], together=False, sampling=each, max_tokens=30)
        alone.append(one)
    asked = [request(prompt, sampling=each, max_tokens=30) for each in dice]
    async with running(launched) as engine:
        with listening(engine) as heard:
            ends = await asyncio.gather(*(run(engine, one) for one in asked))
        stats = engine.stats()
    found = [heard[one.id] for one in asked]
    n_prompt = len(alone[0].prompt)
    assert {end.usage.prompt_tokens for end in ends} == {n_prompt}
    assert sorted(end.usage.cached_tokens for end in ends) == [0] + [n_prompt - 1] * (n - 1)
    assert stats.prompt_tokens == n_prompt + n - 1, "computed once, and one token for each other"
    assert [end.usage.completion_tokens for end in ends] == [len(one.chosen) for one in found]
    assert [one.chosen for one in found] == [one.chosen for one in alone]
    assert len({tuple(one.chosen) for one in found}) == n
    assert_llama_cpps(found, launched, TOLERANCE)


# ── as it is shipped: rounded weights, flash attention, a KV of half floats ──


async def test_rounded_model_stays_within_its_rounding() -> None:
    prompts = [chat(question) for question in QUESTIONS]
    launched = launch(context=128, parallel=4, pool=160)
    found, _, stats = await hear(launched, prompts, together=True, max_tokens=60)
    assert stats.preemptions > 0
    assert_llama_cpps(found, launched, TOLERANCE_Q8)


async def test_where_the_arithmetic_is_the_same_so_is_every_bit() -> None:
    """Chunks of any size below 64 and company do not change a bit, where the CPU's kernels allow.

    From 64 tokens on llama.cpp's flash attention takes another way, and from 512 cells on yet
    another one for a token that is alone; preemption puts cells into another order.
    """
    prompts = [chat(question) for question in QUESTIONS]
    small = launch(context=128, parallel=8, pool=480, batch=24)
    alone, _, _ = await hear(small, prompts, together=False, max_tokens=24)
    with plain(small) as peer:
        tokens = alone[0].prompt + alone[0].chosen
        if not np.array_equal(peer.rows(tokens, 1), peer.rows(tokens, 24)):
            pytest.skip("this CPU computes a token alone in another way than several")
    larger = launch(context=128, parallel=8, pool=480, batch=63)
    for launched, together in ((larger, False), (small, True)):
        found, _, stats = await hear(launched, prompts, together=together, max_tokens=24)
        assert stats.preemptions == 0
        for mine, theirs in zip(found, alone, strict=True):
            assert mine.chosen == theirs.chosen
            assert np.array_equal(np.stack(mine.rows), np.stack(theirs.rows))
