"""LoRA adapters: what they do to logits, that nobody gets another one's, how they come and go."""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from edged.protocol import AdapterFile, Generate, Sampling, Tokens
from edged.worker.llamacpp.engine import LlamaCppEngine
from edged.worker.llamacpp.lora import BadAdapterError
from edged.worker.llamacpp.runner import Decoded, Runner
from tests.llamacpp.support import (
    EDGE_GUIDE,
    ask,
    chat,
    choices,
    launch,
    needs_llama_cpp,
    reference,
    request,
    running,
    wait_for,
)
from tests.models import UnavailableError, tiny
from tests.models.lora import ALPHA, RANK, TARGETS, write_lora
from tests.models.tiny import Trait

pytestmark = needs_llama_cpp

EXPERTS = ("ffn_up_exps.weight", "ffn_down_exps.weight")
QUESTIONS = [f"Question {i}: what is edged, and what does it do?" for i in range(8)]
NO_END = Sampling(temperature=0.0, ignore_eos=True)
PROMPT = [5 + (i * 37) % 200 for i in range(60)]


def file(path: Path, name: str = "one") -> AdapterFile:
    status = path.stat()
    return AdapterFile(name, str(path), f"{status.st_size}-{status.st_mtime_ns}")


def logits(runner: Runner, slot: int, tokens: list[int]) -> np.ndarray[Any, Any]:
    runner.cut(slot, 0)
    assert runner.decode([(slot, 0, tokens, True)]) is Decoded.DONE
    return runner.rows()[0].copy()


def merged(model: Path, adapter: Path, scale: float, path: Path) -> Path:
    """Write a copy of a float32 model whose weights the adapter has changed for good."""
    shutil.copy(model, path)
    pairs = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(adapter).tensors}
    for tensor in GGUFReader(path, "r+").tensors:
        a, b = pairs.get(f"{tensor.name}.lora_a"), pairs.get(f"{tensor.name}.lora_b")
        if a is not None and b is not None:
            change = a @ b.T if tensor.name == "token_embd.weight" else b @ a
            tensor.data[...] += change * np.float32(scale * ALPHA / RANK)
    return path


@pytest.mark.parametrize("trait", ["plain", "swa", "moe", "mrope", "hybrid"])
def test_logits_are_those_of_a_model_whose_weights_were_changed(
    trait: Trait, tmp_path: Path
) -> None:
    try:
        model = tiny(trait)
    except UnavailableError as error:
        pytest.skip(str(error))
    targets = (*TARGETS, *EXPERTS)
    adapter = write_lora(tmp_path / "a.gguf", model, 1, targets=targets)
    found = {}
    for path in (model, merged(model, adapter, 0.7, tmp_path / "merged.gguf")):
        runner = Runner(launch(path, context=256, parallel=2), frozenset(), lambda _: True)
        try:
            found[path.name] = logits(runner, 0, PROMPT)
            if path == model:
                runner.load_adapter(1, adapter)
                runner.use(((1, 0.7),))
                found["adapter"] = logits(runner, 1, PROMPT)
                runner.use(())
                assert np.array_equal(logits(runner, 1, PROMPT), found[path.name])
        finally:
            runner.close()
    whole, plain = found["merged.gguf"], found[model.name]
    assert np.abs(found["adapter"] - whole).max() < 0.01 * whole.std()
    assert np.abs(found["adapter"] - plain).max() > 0.5 * plain.std()


def test_edge_guide_with_an_adapter_gives_the_logits_of_a_plain_decode(tmp_path: Path) -> None:
    paths = [write_lora(tmp_path / f"{i}.gguf", EDGE_GUIDE, i) for i in range(2)]
    uses = ((1, 0.7), (2, 0.4))
    with reference(EDGE_GUIDE) as llama:
        lib = importlib.import_module("llama_cpp").llama_cpp
        handles = (lib.llama_adapter_lora_p_ctypes * 2)(
            *(lib.llama_adapter_lora_init(llama.model, str(path).encode()) for path in paths)
        )
        scales = (ctypes.c_float * 2)(*(scale for _, scale in uses))
        lib.llama_set_adapters_lora(llama.ctx, handles, 2, scales)
        llama.eval(PROMPT)
        row = lib.llama_get_logits_ith(llama.ctx, -1)
        expected = np.ctypeslib.as_array(row, shape=(llama.n_vocab(),)).copy()
    runner = Runner(launch(), frozenset(), lambda _: True)
    try:
        for number, path in enumerate(paths, 1):
            runner.load_adapter(number, path)
        runner.use(uses)
        found = logits(runner, 0, PROMPT)
        runner.use(uses[:1])
        one_alone = logits(runner, 0, PROMPT)
    finally:
        runner.close()
    assert np.abs(found - expected).max() < 0.02 * expected.std()
    assert np.abs(found - one_alone).max() > 0.1 * expected.std()


@pytest.mark.parametrize("metadata", [{"general.architecture": "llama"}, {"adapter.type": "ia3"}])
def test_file_that_llama_cpp_refuses_says_why(metadata: dict[str, str], tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.gguf", EDGE_GUIDE, 1, metadata=metadata)
    runner = Runner(launch(), frozenset(), lambda _: True)
    try:
        with pytest.raises(BadAdapterError, match=r"mismatch|expect adapter\.type"):
            runner.load_adapter(1, path)
        assert logits(runner, 0, PROMPT).any()
    finally:
        runner.close()


def asked(question: str, *adapters: tuple[str, float], **more: Any) -> Generate:
    more = {"sampling": NO_END, "max_tokens": 24} | more
    return request(question, adapters=adapters, **more)


async def test_streams_of_three_adapters_answer_as_alone(tmp_path: Path) -> None:
    files = [
        file(write_lora(tmp_path / f"{i}.gguf", EDGE_GUIDE, i, strength=1.0), f"a{i}")
        for i in range(3)
    ]
    uses: list[tuple[tuple[str, float], ...]] = [
        (), (("a0", 1.0),), (("a1", 1.0),), (("a2", 1.0),),
        (("a0", 0.5),), (("a1", 1.0), ("a2", 0.5)), (("a0", 1.0),), (),
    ]  # fmt: skip
    async with running(launch(parallel=8)) as engine:
        engine.adapt(tuple(files))

        def requests() -> list[Generate]:
            return [asked(q, *use) for q, use in zip(QUESTIONS, uses, strict=True)]

        alone = await choices(engine, requests(), together=False)
        together = await choices(engine, requests(), together=True)
        same = await choices(engine, [asked(QUESTIONS[0], *use) for use in uses[:4]], together=True)
    assert sum(one.same_as(other) for one, other in zip(together, alone, strict=True)) > 0
    texts = {tuple(token for token, _ in each) for each in same}
    assert len(texts) == 4, "each adapter changes the answer"


async def test_streams_of_several_adapters_can_be_preempted(tmp_path: Path) -> None:
    files = [file(write_lora(tmp_path / f"{i}.gguf", EDGE_GUIDE, i), f"a{i}") for i in range(2)]
    async with running(launch(context=160, parallel=4, pool=220)) as engine:
        engine.adapt(tuple(files))

        def requests() -> list[Generate]:
            uses = [(), (("a0", 1.0),), (("a1", 0.5),)]
            return [
                request(Tokens(PROMPT[i:]), adapters=uses[i % 3], sampling=NO_END, max_tokens=60)
                for i in range(12)  # three fit, but not to their ends
            ]

        alone = await choices(engine, requests(), together=False)
        before = engine.stats().preemptions
        together = await choices(engine, requests(), together=True)
        assert engine.stats().preemptions > before
    for one, other in zip(together, alone, strict=True):
        one.same_as(other)


async def test_prefixes_are_shared_among_the_same_version_and_scale_only(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.gguf", EDGE_GUIDE, 1)

    async def cached(*adapters: tuple[str, float]) -> int:
        answer = await ask(engine, Tokens(PROMPT), adapters=adapters, max_tokens=1)
        return answer.done.usage.cached_tokens

    async with running(launch()) as engine:
        engine.adapt((file(path),))
        assert [await cached(), await cached()] == [0, len(PROMPT) - 1]
        assert [await cached(("one", 1.0)), await cached(("one", 1.0))] == [0, len(PROMPT) - 1]
        assert await cached(("one", 0.5)) == 0
        assert await cached(("one", 0.0)) == len(PROMPT) - 1, "nothing is changed"
        write_lora(path, EDGE_GUIDE, 2)
        engine.adapt((file(path),))
        assert await cached(("one", 1.0)) == 0
        engine.adapt(())
        engine.adapt((file(path),))
        assert await cached(("one", 1.0)) == len(PROMPT) - 1, "the very same file came back"


def in_memory(engine: LlamaCppEngine) -> int:
    return len(engine._runner._lora._loaded)


async def test_stream_ends_with_the_version_that_it_began_with(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.gguf", EDGE_GUIDE, 1, strength=0.3)
    long = {"max_tokens": 300}
    async with running(launch()) as engine:
        engine.adapt((file(path),))
        (old,) = await choices(engine, [asked(QUESTIONS[0], ("one", 1.0), **long)], together=False)
        stream = asyncio.create_task(
            choices(engine, [asked(QUESTIONS[0], ("one", 1.0), **long)], together=True)
        )
        await wait_for(lambda: engine.stats().running > 0)
        path.unlink()
        write_lora(path, EDGE_GUIDE, 2, strength=0.3)
        engine.adapt((file(path),))
        base = await ask(engine, chat(QUESTIONS[1]), max_tokens=4)
        assert not stream.done()
        changed = await ask(engine, chat(QUESTIONS[0]), adapters=(("one", 1.0),), max_tokens=4)
        assert base.finish
        assert changed.finish
        engine.adapt(())
        refused = await ask(engine, chat(QUESTIONS[0]), adapters=(("one", 1.0),))
        assert refused.failed
        assert refused.failed.code == "model_not_found"
        (new,) = await stream
        new.same_as(old)
        await wait_for(lambda: in_memory(engine) == 0)


async def test_broken_file_fails_its_requests_only_until_it_is_mended(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.gguf", EDGE_GUIDE, 1)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    gone = AdapterFile("gone", str(tmp_path / "none.gguf"), "1")
    async with running(launch()) as engine:
        engine.adapt((file(path), gone))
        for name, why in (("one", "corrupted or incomplete|failed to load"), ("gone", "No such")):
            answer = await ask(engine, chat("Hi"), adapters=((name, 1.0),))
            assert answer.failed
            assert answer.failed.code == "adapter_failed"
            assert re.search(why, answer.failed.message)
        assert [state.state for state in engine.stats().adapters] == ["failed", "failed"]
        assert (await ask(engine, chat("Hi"), max_tokens=2)).finish
        path.write_bytes(content)
        engine.adapt((file(path),))
        assert (await ask(engine, chat("Hi"), adapters=(("one", 1.0),), max_tokens=2)).finish
        assert [state.state for state in engine.stats().adapters] == ["ready"]


async def test_request_that_waits_for_its_adapter_ends_with_the_engine(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.gguf", EDGE_GUIDE, 1)
    async with running(launch()) as engine:
        engine._adapters._between_steps = lambda _work: None  # a load that never ends
        engine.adapt((file(path),))
        waiting = asyncio.create_task(ask(engine, chat("Hi"), adapters=(("one", 1.0),)))
        await wait_for(lambda: any(v.users for v in engine._adapters._live))
        await engine.close()
        answer = await waiting
    assert answer.failed
    assert answer.failed.code == "shutting_down"


async def test_aborted_stream_gives_its_adapter_back(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.gguf", EDGE_GUIDE, 1)
    async with running(launch()) as engine:
        engine.adapt((file(path),))
        events = engine.generate(asked(QUESTIONS[0], ("one", 1.0), max_tokens=400))
        await anext(events)
        await anext(events)
        engine.adapt(())
        assert in_memory(engine) == 1
        await events.aclose()
        await wait_for(lambda: in_memory(engine) == 0)
        assert (await ask(engine, chat("Hi"), max_tokens=2)).finish
