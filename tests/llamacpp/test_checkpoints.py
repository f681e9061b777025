"""Memory that cannot be cut: what is shared of it gives the logits of an unshared run."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from edged.protocol import Launch, Sampling, Started, Tokens
from edged.worker.llamacpp.engine import LlamaCppEngine
from edged.worker.llamacpp.runner import Decoded, Runner
from tests.llamacpp.support import Answer, ask, choices, launch, needs_llama_cpp, request, running
from tests.models import UnavailableError, tiny
from tests.models.tiny import WINDOW, Trait

pytestmark = needs_llama_cpp

STATES: list[Trait] = [
    "recurrent", "rwkv", "hybrid", "hybrid-swa", "hybrid-ssm", "hybrid-delta",
]  # fmt: skip
WINDOWS: list[Trait] = ["swa", "sinks"]
TOKENS = [5 + (i * 37) % 200 for i in range(400)]
NO_END = Sampling(temperature=0.0, ignore_eos=True)
# Other borders of chunks change logits by rounding; a wrong state changes them by their spread.
ROUNDING, WRONG = 0.1, 0.5

Row = np.ndarray[Any, Any]


def model(trait: Trait) -> Path:
    try:
        return tiny(trait)
    except UnavailableError as error:
        pytest.skip(str(error))


def launched(trait: Trait, *, full_window: bool = True, **more: Any) -> Launch:
    found = launch(model(trait), **({"context": 512, "parallel": 2} | more))
    assert found.llamacpp is not None
    return replace(found, llamacpp=replace(found.llamacpp, full_window=full_window))


def opened(trait: Trait, **more: Any) -> Runner:
    return Runner(launched(trait, **more), frozenset(), lambda _: True)


def logits(runner: Runner, slot: int, start: int, tokens: list[int]) -> Row:
    assert runner.decode([(slot, start, tokens, True)]) is Decoded.DONE
    return runner.rows()[0].copy()


@pytest.mark.parametrize("full_window", [True, False])
@pytest.mark.parametrize("trait", [*WINDOWS, *STATES])
def test_checkpoint_gives_bit_equal_logits_after_its_donor_went_on(
    trait: Trait, full_window: bool
) -> None:
    runner = opened(trait, full_window=full_window)
    n = 120
    try:
        logits(runner, 0, 0, TOKENS[:n])
        fresh = logits(runner, 0, n, TOKENS[n : n + 20])
        runner.cut(0, 0)
        logits(runner, 0, 0, TOKENS[:n])
        runner.share(0, 1, n)  # the checkpoint
        for i in range(4):
            logits(runner, 0, n + 50 * i, TOKENS[150 + i : 200 + i])
        for slot in (2, 3):
            runner.share(1, slot, n)
            assert np.array_equal(logits(runner, slot, n, TOKENS[n : n + 20]), fresh)
        assert np.array_equal(logits(runner, 1, n, TOKENS[n : n + 20]), fresh)
    finally:
        runner.close()


def test_first_position_tells_where_a_window_may_be_shared() -> None:
    """llama.cpp reuses cells behind the window of a sequence while it runs, `full` or not."""
    runner = opened("swa", context=256, parallel=2)
    draw = random.Random(1)
    held: dict[int, list[int]] = {}
    errors: dict[bool, list[float]] = {True: [], False: []}
    try:
        for step in range(500):
            slot = draw.randrange(4)
            n_new = draw.randrange(1, 20) if held.get(slot) else draw.randrange(20, 120)
            if len(held.get(slot, [])) + n_new > 200 or draw.random() < 0.15:
                runner.cut(slot, 0)
                held.pop(slot, None)
                continue
            tokens = held.get(slot, [])
            new = [5 + draw.randrange(200) for _ in range(n_new)]
            if runner.decode([(slot, len(tokens), new, True)]) is not Decoded.DONE:
                for each in held:
                    runner.cut(each, 0)
                held.clear()
                continue
            tokens = held[slot] = tokens + new
            n = draw.randrange(5, len(tokens)) if len(tokens) > 5 else 0
            if step % 3 or not n or sum(map(len, held.values())) + n + 4 > runner.cells:
                continue
            allowed = runner.first_position(slot) <= max(0, n - WINDOW + 1)
            runner.share(slot, 5, n)
            shared = logits(runner, 5, n, [9, 8])
            runner.cut(5, 0)
            logits(runner, 6, 0, tokens[:n])
            alone = logits(runner, 6, n, [9, 8])
            runner.cut(6, 0)
            errors[allowed].append(float(np.abs(shared - alone).max() / alone.std()))
    finally:
        runner.close()
    assert len(errors[True]) > 20
    assert max(errors[True]) < ROUNDING
    assert max(errors[False]) > WRONG, "if this never happens, there is nothing to look at"


@pytest.mark.parametrize("trait", WINDOWS)
def test_saved_state_holds_no_more_than_the_window(trait: Trait) -> None:
    """Why a prefix from the disk is of use at its end only, though the window is full."""
    runner = opened(trait)
    n = 200
    try:
        logits(runner, 0, 0, TOKENS[:n])
        state = memoryview(bytearray(runner.state_bytes(0)))
        assert runner.save(0, state)
        assert runner.restore(1, state)
        assert (runner.first_position(0), runner.first_position(1)) == (0, n - WINDOW)
        assert np.array_equal(*(logits(runner, slot, n, [9, 8]) for slot in (0, 1)))
    finally:
        runner.close()


@pytest.mark.parametrize("trait", STATES)
def test_broken_off_decode_spoils_the_states_of_bystanders(trait: Trait) -> None:
    """Why no step of such a model is interrupted, and why none of its states survives that."""
    runner = opened(trait)
    n, fresh = 50, {}
    try:
        for slot in range(4):
            logits(runner, 0, 0, TOKENS[slot : slot + n])
            fresh[slot] = logits(runner, 0, n, TOKENS[:5])
            runner.cut(0, 0)
        worst = 0.0
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
            for slot in order:
                runner.cut(slot, 0)
            for slot in order:
                logits(runner, slot, 0, TOKENS[slot : slot + n])
            runner._interrupt.set()
            chunks = [(order[i], n, TOKENS[n : n + 1], True) for i in (3, 0)]
            assert runner.decode(chunks) is Decoded.INTERRUPTED
            for slot in (order[1], order[2]):
                error = np.abs(logits(runner, slot, n, TOKENS[:5]) - fresh[slot]).max()
                worst = max(worst, float(error / fresh[slot].std()))
        assert worst > WRONG
        for slot in range(4):
            runner.cut(slot, 0)
        logits(runner, 0, 0, TOKENS[:n])
        runner.interrupt()
        assert np.array_equal(logits(runner, 0, n, TOKENS[:5]), fresh[0])
    finally:
        runner.close()


@pytest.mark.parametrize("full_window", [True, False])
@pytest.mark.parametrize("trait", ["plain", "mrope", "mla", *WINDOWS, *STATES])
async def test_eight_users_compute_their_system_prompt_once(
    trait: Trait, full_window: bool
) -> None:
    system = TOKENS[:300]
    async with running(launched(trait, full_window=full_window, parallel=8)) as engine:
        answers = await asyncio.gather(
            *(ask_for(engine, [*system, *[10 + user] * 20]) for user in range(8))
        )
        later = await ask_for(engine, [*system, *[90] * 20])
        alone = await fresh_answer(engine, [*system, *[90] * 20])
    cached = sorted(answer.done.usage.cached_tokens for answer in answers)
    assert cached == [0] + [300] * 7
    assert later.done.usage.cached_tokens == 300
    assert later.content == alone.content


async def ask_for(engine: LlamaCppEngine, tokens: list[int], **more: Any) -> Answer:
    return await ask(engine, Tokens(tokens), sampling=NO_END, **({"max_tokens": 4} | more))


async def fresh_answer(engine: LlamaCppEngine, tokens: list[int]) -> Answer:
    """What the model says to one of another group, who shares nothing."""
    return await ask_for(engine, tokens, group="nobody else's")


@pytest.mark.parametrize("full_window", [True, False])
@pytest.mark.parametrize("trait", ["plain", "mla", *WINDOWS, *STATES])
async def test_turns_whose_answers_are_not_shown_as_written_begin_where_they_can(
    trait: Trait, full_window: bool
) -> None:
    """As with reasoning, which leaves the conversation when its turn is over."""
    async with running(launched(trait, full_window=full_window)) as engine:
        control = min(engine._runner.vocab.control)
        prompt, cached, borders = TOKENS[:60], [], []
        for turn in range(4):
            prompt = [*prompt, control, *TOKENS[70 + turn : 100 + turn], control]
            borders.append(len(prompt) - 1)
            asked = [*prompt, 6, 7, 8]
            answer = await ask_for(engine, asked, max_tokens=20)
            alone = await fresh_answer(engine, asked)
            assert answer.content.startswith(alone.content[:1])
            cached.append(answer.done.usage.cached_tokens)
            prompt = [*prompt, *TOKENS[200 + turn : 230 + turn]]
    assert cached[0] == 0
    assert all(n >= border for n, border in zip(cached[1:], borders, strict=False))


@pytest.mark.parametrize("trait", [*WINDOWS, *STATES])
async def test_aborts_in_company_leave_the_others_their_answers(trait: Trait) -> None:
    async with running(launched(trait, parallel=4, batch=64)) as engine:
        prompts = [Tokens(TOKENS[i : i + 150]) for i in range(0, 150, 50)]
        more = {"sampling": NO_END, "max_tokens": 6}
        alone = await choices(engine, prompts, together=False, group="nobody else's", **more)

        async def leave() -> None:
            asked = engine.generate(
                request(Tokens(TOKENS[200:390]), sampling=NO_END, max_tokens=50)
            )
            async for event in asked:
                if isinstance(event, Started):
                    break
            await asyncio.sleep(0)
            await asked.aclose()

        for _ in range(4):
            together, *_ = await asyncio.gather(
                choices(engine, prompts, together=True, **more), leave(), leave()
            )
            for mine, theirs in zip(together, alone, strict=True):
                mine.same_as(theirs)  # asserts that only a near-tie parts them
