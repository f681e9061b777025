"""Prefixes that survive the engine: saved when it closes, read back when a request matches."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from edged.protocol import Launch, PrefixCache, Sampling, Text, Tokens
from edged.worker.llamacpp import saved_file
from edged.worker.llamacpp.engine import LlamaCppEngine
from tests.llamacpp.media import look, seeing, some
from tests.llamacpp.support import (
    EDGE_GUIDE,
    ask,
    choices,
    launch,
    needs_llama_cpp,
    running,
    wait_for,
)
from tests.llamacpp.test_traits import CUTTABLE, PROMPT, WRITERS, model
from tests.models.projector import PROJECTORS, Projector
from tests.models.tiny import Trait

pytestmark = needs_llama_cpp

NO_END = Sampling(temperature=0.0, ignore_eos=True)
SYSTEM = "You are the guide of a small box. Answer in one sentence, and name the file. " * 12


def cached(launched: Launch, folder: Path, n_bytes: int = 1 << 30) -> Launch:
    """Return the launch with a cache in `folder`."""
    assert launched.llamacpp is not None
    cache = PrefixCache(n_bytes, n_bytes, str(folder))
    return replace(launched, llamacpp=replace(launched.llamacpp, prefix_cache=cache))


@contextlib.asynccontextmanager
async def saving(launched: Launch) -> AsyncIterator[LlamaCppEngine]:
    """As `running`, but what is hot is saved in the end."""
    engine = LlamaCppEngine(on_fault=lambda: pytest.fail("the engine thread failed"))
    await engine.load(launched, lambda _: None)
    try:
        yield engine
    finally:
        await engine.close(save_s=30)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("**/*.kv"))


async def test_answers_after_a_restart_are_those_of_the_resident(tmp_path: Path) -> None:
    launched = cached(launch(context=1024, parallel=2), tmp_path)
    rows: list[Any] = []

    async def last_row(engine: LlamaCppEngine, prompt: str) -> int:
        """Ask for one token; keep the logits it was chosen from."""
        original = engine._runner.rows

        def keep() -> Any:
            found = original()
            rows.append(found[0].copy())
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine._runner, "rows", keep)
            answer = await ask(engine, Text(prompt), max_tokens=1)
        return answer.done.usage.cached_tokens

    async with saving(launched) as engine:
        first = await ask(engine, Text(SYSTEM + "What is edged?"), max_tokens=8)
        n = first.done.usage.prompt_tokens
        assert await last_row(engine, SYSTEM + "Where are the logs?") > n - 20
        plain = await choices(engine, [Text(SYSTEM + "What is a model?")], together=False)
    assert len(files(tmp_path)) >= 1
    async with saving(launched) as engine:
        assert await last_row(engine, SYSTEM + "Where are the logs?") > n - 20
        again = await choices(engine, [Text(SYSTEM + "What is a model?")], together=False)
        assert engine.stats().restored_tokens >= n
    assert np.array_equal(rows[0], rows[1])
    assert again[0].same_as(plain[0])


REMEMBERS_ALL = CUTTABLE - {"swa"}  # of a window a file holds what its end needs


@pytest.mark.parametrize("trait", [*WRITERS, "hybrid-swa", "hybrid-ssm", "hybrid-delta"])
async def test_state_of_every_trait_comes_back_exactly(trait: Trait, tmp_path: Path) -> None:
    """For a prompt that goes on from the saved one, and for one that leaves it before its end."""
    launched = cached(launch(model(trait), context=256, parallel=2), tmp_path)
    longer, forked = Tokens([*PROMPT, 9, 9]), Tokens([*PROMPT[:80], 7])
    more: dict[str, Any] = {"together": False, "sampling": NO_END, "max_tokens": 12}
    async with running(launch(model(trait), context=256, parallel=2)) as engine:
        (plain_forked,) = await choices(engine, [forked], **more)
        (plain_longer,) = await choices(engine, [longer], **more)
    async with saving(launched) as engine:
        await ask(engine, Tokens(PROMPT), sampling=NO_END, max_tokens=1)
    assert len(files(tmp_path)) == 1
    async with running(launched) as engine:
        (found,) = await choices(engine, [forked], **more)
        assert engine.stats().cached_tokens == (80 if trait in REMEMBERS_ALL else 0)
    found.same_as(plain_forked)  # they part at near-ties only
    async with running(launched) as engine:
        (found,) = await choices(engine, [longer], **more)
        assert engine.stats().restored_tokens == len(PROMPT)
        assert engine.stats().cached_tokens == len(PROMPT)
    found.same_as(plain_longer)


async def test_group_stays_alone_over_a_restart(tmp_path: Path) -> None:
    launched = cached(launch(context=1024, parallel=2), tmp_path)
    async with saving(launched) as engine:
        await ask(engine, Text(SYSTEM + "a"), group="mine", max_tokens=1)
    async with saving(launched) as engine:
        theirs = await ask(engine, Text(SYSTEM + "a"), group="theirs", max_tokens=1)
        nobodys = await ask(engine, Text(SYSTEM + "a"), max_tokens=1)
        mine = await ask(engine, Text(SYSTEM + "a"), group="mine", max_tokens=1)
    assert [a.done.usage.cached_tokens for a in (theirs, nobodys)] == [0, 0]
    assert mine.done.usage.cached_tokens == mine.done.usage.prompt_tokens - 1


@pytest.mark.parametrize("what", ["kv_type", "flash_attention", "model"])
async def test_other_settings_and_other_weights_find_nothing(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(EDGE_GUIDE.read_bytes())
    launched = cached(launch(path, context=1024, parallel=2), tmp_path / "cache")
    assert launched.llamacpp is not None
    async with saving(launched) as engine:
        await ask(engine, Text(SYSTEM), max_tokens=1)
    if what == "model":
        content = bytearray(path.read_bytes())
        content[-100] ^= 1
        path.write_bytes(content)
    else:
        other = {"kv_type": "q8_0", "flash_attention": "on"}[what]
        launched = replace(launched, llamacpp=replace(launched.llamacpp, **{what: other}))
    async with saving(launched) as engine:
        answer = await ask(engine, Text(SYSTEM), max_tokens=1)
        assert engine.stats().restored_tokens == 0
    assert answer.done.usage.cached_tokens == 0


async def test_copied_and_touched_model_finds_its_prefixes(tmp_path: Path) -> None:
    launched = cached(launch(EDGE_GUIDE, context=1024, parallel=2), tmp_path / "cache")
    async with saving(launched) as engine:
        await ask(engine, Text(SYSTEM), max_tokens=1)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(EDGE_GUIDE.read_bytes())
    async with saving(replace(launched, path=str(copy), file_id="another")) as engine:
        answer = await ask(engine, Text(SYSTEM), max_tokens=1)
    assert answer.done.usage.cached_tokens > 64


async def test_torn_state_is_removed_and_the_request_computed(tmp_path: Path) -> None:
    launched = cached(launch(context=1024, parallel=2), tmp_path)
    async with saving(launched) as engine:
        plain = await ask(engine, Text(SYSTEM), max_tokens=16)
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    content[-1000] ^= 255
    file.write_bytes(content)
    async with running(launched) as engine:
        answer = await ask(engine, Text(SYSTEM), max_tokens=16)
    assert answer.content == plain.content
    assert answer.done.usage.cached_tokens == 0
    assert files(tmp_path) == []


async def test_state_that_llama_cpp_refuses_costs_only_the_file(tmp_path: Path) -> None:
    launched = cached(launch(context=1024, parallel=2), tmp_path)
    async with saving(launched) as engine:
        plain = await ask(engine, Text(SYSTEM), max_tokens=16)
    async with running(launched) as engine:
        restore = engine._runner.restore
        engine._runner.restore = lambda slot, state: restore(slot, state[:-64])  # type: ignore[method-assign]
        answer = await ask(engine, Text(SYSTEM), max_tokens=16)
        assert answer.content == plain.content
        assert answer.done.usage.cached_tokens == 0
        assert files(tmp_path) == []
        engine._runner.restore = restore  # type: ignore[method-assign]
        assert (await ask(engine, Text(SYSTEM), max_tokens=1)).done.usage.cached_tokens > 64


async def test_next_turn_replaces_the_file_of_the_last(tmp_path: Path) -> None:
    launched = cached(launch(context=1024, parallel=2), tmp_path)
    text = SYSTEM
    names: set[str] = set()
    for _ in range(3):
        async with saving(launched) as engine:
            answer = await ask(engine, Text(text), max_tokens=8, sampling=NO_END)
        text += answer.content + " And then?"
        (file,) = files(tmp_path)
        names.add(file.name)
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
    assert len(names) == 3


async def test_open_request_leaves_its_prefix(tmp_path: Path) -> None:
    launched = cached(launch(context=1024, parallel=2), tmp_path)
    engine = LlamaCppEngine()
    await engine.load(launched, lambda _: None)
    asked = ask_soon(engine)
    await wait_for(lambda: engine.stats().completion_tokens > 3)
    await engine.close(save_s=30)
    assert (await asked).failed is not None
    assert len(files(tmp_path)) == 1
    async with running(launched) as again:
        answer = await ask(again, Text(SYSTEM), max_tokens=1)
    assert answer.done.usage.cached_tokens == answer.done.usage.prompt_tokens - 1


def ask_soon(engine: LlamaCppEngine) -> Any:
    return asyncio.ensure_future(ask(engine, Text(SYSTEM), sampling=NO_END))


async def test_many_requests_wait_for_one_file(tmp_path: Path) -> None:
    launched = cached(launch(context=1024, parallel=4), tmp_path)
    async with saving(launched) as engine:
        await ask(engine, Text(SYSTEM), max_tokens=1)
    async with running(launched) as engine:
        prompts = [Text(SYSTEM + word) for word in ("one", "two", "three", "four", "five")]
        answers = await asyncio.gather(*(ask(engine, p, max_tokens=2) for p in prompts))
        restored = engine.stats().restored_tokens
        assert engine.stats().waiting == 0
    n = answers[0].done.usage.prompt_tokens
    assert all(a.done.usage.cached_tokens > n - 20 for a in answers)
    assert restored < 2 * n


async def test_aborted_while_its_file_is_read_leaves_nothing(tmp_path: Path) -> None:
    launched = cached(launch(context=1024, parallel=2), tmp_path)
    async with saving(launched) as engine:
        await ask(engine, Text(SYSTEM), max_tokens=1)
    go_on = threading.Event()
    read = saved_file.read

    def slowly(prefix: Any) -> Any:
        go_on.wait(60)
        return read(prefix)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_file, "read", slowly)
        async with running(launched) as engine:
            asked = ask_soon(engine)
            await wait_for(lambda: engine.stats().waiting == 1)
            other = await ask(engine, Text("Hello"), max_tokens=2)
            assert other.done.usage.completion_tokens == 2
            asked.cancel()
            await wait_for(lambda: engine.stats().waiting == 0)
            go_on.set()
            await wait_for(lambda: engine._thread.at_rest)
            assert engine.stats().restored_tokens == 0
            answer = await ask(engine, Text(SYSTEM), max_tokens=1)
            assert answer.done.usage.cached_tokens > 64


async def test_off_removes_what_was_saved(tmp_path: Path) -> None:
    launched = cached(launch(context=1024, parallel=2), tmp_path)
    async with saving(launched) as engine:
        await ask(engine, Text(SYSTEM), max_tokens=1)
    assert files(tmp_path)
    async with saving(cached(launched, tmp_path, 0)) as engine:
        assert files(tmp_path) == []
        await ask(engine, Text(SYSTEM), max_tokens=1)
    assert files(tmp_path) == []


async def test_folder_that_cannot_be_had_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    launched = cached(launch(context=1024, parallel=2), tmp_path / "file")
    async with saving(launched) as engine:
        await ask(engine, Text(SYSTEM), max_tokens=1)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("kind", PROJECTORS)
async def test_image_comes_back_with_its_prefix(kind: Projector, tmp_path: Path) -> None:
    plain = seeing(kind, context=1024, parallel=2, batch=512)
    launched = cached(plain, tmp_path)
    before = "Look at this and tell. " * 10
    prompt = look(before, some(kind), "What is it?")
    other = look(before, some(kind, seed=2), "What is it?")
    more: dict[str, Any] = {"sampling": NO_END, "max_tokens": 12}
    async with running(plain) as engine:
        expected = await choices(engine, [prompt, other], together=False, **more)
    async with saving(launched) as engine:
        await ask(engine, prompt, sampling=NO_END, max_tokens=1)
    async with running(launched) as engine:
        cuttable, window = engine._runner.facts.cuttable, engine._runner.facts.window
        found = await choices(engine, [prompt], together=False, **more)
        stats = engine.stats()
        found += await choices(engine, [other], together=False, **more)
        at_image = engine.stats().cached_tokens - stats.cached_tokens
    n = stats.cached_tokens + stats.prompt_tokens
    if cuttable:
        assert stats.restored_tokens >= stats.cached_tokens == n - 1
        assert at_image < n - 16, "nothing of the first image in the second"
        # A window that comes from a file does not reach back to the text before the image.
        assert (at_image == 0) == bool(window)
    same = [a.same_as(b) for a, b in zip(found, expected, strict=True)]
    assert any(same), "both parted at a near-tie"
