"""Models that must be treated in their own way: windows, states, embeddings, broken files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from msgspec.structs import replace

from edged.protocol import Sampling, Tokens
from edged.worker.engine import BadModelError, EngineMissingError
from edged.worker.llamacpp import library as module
from edged.worker.llamacpp.runner import Decoded, Runner
from tests.llamacpp.support import ask, launch, needs_llama_cpp, running
from tests.models import UnavailableError, broken, tiny
from tests.models.broken import Kind
from tests.models.tiny import Trait

pytestmark = needs_llama_cpp

WRITERS: list[Trait] = ["plain", "qwen2", "swa", "moe", "recurrent", "hybrid"]
CUTTABLE = {"plain", "qwen2", "swa", "moe"}
PROMPT = [5 + (i * 37) % 200 for i in range(90)]  # longer than the tiny model's window
NO_END = Sampling(temperature=0.0, ignore_eos=True)


def model(trait: Trait) -> Path:
    try:
        return tiny(trait)
    except UnavailableError as error:
        pytest.skip(str(error))


def open_runner(path: Path, **more: Any) -> Runner:
    return Runner(launch(path, context=256, parallel=2, **more), frozenset(), lambda _: True)


def logits(runner: Runner, slot: int, start: int, tokens: list[int]) -> np.ndarray[Any, Any]:
    assert runner.decode([(slot, start, tokens, True)]) is Decoded.DONE
    return runner.rows()[0].copy()


@pytest.mark.parametrize("trait", WRITERS)
def test_reused_state_gives_the_logits_of_a_fresh_one(trait: Trait) -> None:
    runner = open_runner(model(trait))
    try:
        fresh = logits(runner, 0, 0, PROMPT)
        assert runner.facts.cuttable == (trait in CUTTABLE)
        logits(runner, 1, 0, PROMPT[:-7])
        slot = 1
        if runner.facts.cuttable:
            runner.share(1, 2, len(PROMPT) - 7)
            runner.cut(1, 0)
            slot = 2
        reused = logits(runner, slot, len(PROMPT) - 7, PROMPT[-7:])
        assert np.abs(fresh - reused).max() < 0.05 * fresh.std() + 1e-3
    finally:
        runner.close()


@pytest.mark.parametrize("trait", WRITERS)
async def test_only_what_is_exact_is_reused(trait: Trait) -> None:
    async with running(launch(model(trait), context=256, parallel=2)) as engine:
        first = await ask(engine, Tokens(PROMPT), sampling=NO_END, max_tokens=1)
        longer = await ask(engine, Tokens([*PROMPT, 9, 9]), sampling=NO_END, max_tokens=1)
        forked = await ask(engine, Tokens([*PROMPT[:50], 7]), sampling=NO_END, max_tokens=1)
    assert first.done.usage.cached_tokens == 0
    assert longer.done.usage.cached_tokens == len(PROMPT)
    assert forked.done.usage.cached_tokens == (50 if trait in CUTTABLE else 0)


@pytest.mark.parametrize("trait", WRITERS)
async def test_streams_of_every_trait_end_and_can_be_preempted(trait: Trait) -> None:
    async with running(launch(model(trait), context=128, parallel=4, pool=200)) as engine:
        answers = await asyncio.gather(
            *(ask(engine, Tokens(PROMPT[i:]), sampling=NO_END, max_tokens=30) for i in range(6))
        )
        assert {a.done.reason for a in answers} == {"length"}
        assert engine.stats().preemptions > 0


@pytest.mark.parametrize("trait", ["embedding", "embedding-last", "rerank"])
def test_model_that_cannot_write_is_a_bad_model(trait: Trait) -> None:
    with pytest.raises(BadModelError, match="cannot write"):
        open_runner(model(trait))


@pytest.mark.parametrize("kind", get_args(Kind))
def test_broken_file_is_a_bad_model_with_a_reason(kind: Kind) -> None:
    try:
        path = broken(kind)
    except UnavailableError as error:
        pytest.skip(str(error))
    with pytest.raises(BadModelError) as caught:
        open_runner(path)
    assert str(path) in str(caught.value)
    assert "no reason" not in str(caught.value)


def test_missing_file_is_a_bad_model(tmp_path: Path) -> None:
    with pytest.raises(BadModelError, match="does not exist"):
        open_runner(tmp_path / "none.gguf")


def test_unknown_kv_type_names_the_known_ones() -> None:
    launched = launch(model("plain"), context=256)
    assert launched.llamacpp is not None
    wrong = replace(launched, llamacpp=replace(launched.llamacpp, kv_type="q1_9"))
    with pytest.raises(BadModelError, match="q8_0"):
        Runner(wrong, frozenset(), lambda _: True)


def test_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(module.importlib, "import_module", fail)
    with pytest.raises(EngineMissingError, match="pip install"):
        open_runner(Path("/nowhere"))


def test_progress_can_stop_a_load() -> None:
    seen: list[float] = []

    def stop(fraction: float) -> bool:
        seen.append(fraction)
        return False

    with pytest.raises(BadModelError):
        Runner(launch(model("plain"), context=256), frozenset(), stop)
    assert seen


@pytest.mark.parametrize("trait", ["recurrent", "rwkv", "hybrid", "hybrid-ssm", "hybrid-delta"])
def test_broken_step_spoils_the_state_of_one_who_was_not_in_it(trait: Trait) -> None:
    """Why `Scheduler.interrupted` forgets everybody: if this fails, llama.cpp has mended it."""
    runner = Runner(launch(model(trait), context=256, parallel=4), frozenset(), lambda _: True)
    try:
        fresh = logits(runner, 0, 0, PROMPT)
        runner.cut(0, 0)
        # The states lie in the order in which they came. Those of 0 and 1 are to be neighbours.
        logits(runner, 0, 0, PROMPT[40:])
        logits(runner, 2, 0, PROMPT[:-1])
        logits(runner, 1, 0, PROMPT[60:])
        runner._interrupt.set()  # `interrupt` spares such models
        outcome = runner.decode([(0, 50, [9], 1), (1, 30, [9], 1)])
        assert outcome is Decoded.INTERRUPTED
        spoiled = logits(runner, 2, len(PROMPT) - 1, PROMPT[-1:])
        assert np.abs(spoiled - fresh).max() > 0.2 * fresh.std()
    finally:
        runner.close()


def test_several_sequences_in_one_batch_get_their_own_rows() -> None:
    runner = open_runner(model("plain"))
    try:
        one = logits(runner, 0, 0, PROMPT[:20])
        two = logits(runner, 1, 0, PROMPT[20:45])
        runner.cut(0, 0)
        runner.cut(1, 0)
        outcome = runner.decode([(0, 0, PROMPT[:20], True), (1, 0, PROMPT[20:45], True)])
        assert outcome is Decoded.DONE
        rows = runner.rows()
        assert np.abs(rows[0] - one).max() < 0.05 * one.std() + 1e-3
        assert np.abs(rows[1] - two).max() < 0.05 * two.std() + 1e-3
    finally:
        runner.close()


def test_full_pool_is_no_room_and_leaves_memory_as_it_was() -> None:
    runner = open_runner(model("plain"), pool=256)
    try:
        assert runner.decode([(0, 0, [5] * 200, True)]) is Decoded.DONE
        assert runner.decode([(1, 0, [5] * 100, True)]) is Decoded.NO_ROOM
        assert runner.last_position(0) == 199
        assert runner.last_position(1) == -1
    finally:
        runner.close()
