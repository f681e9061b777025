"""The real engine in this process, and what its tests ask of it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edged.store
from edged.protocol import (
    CallDelta,
    Chosen,
    Delta,
    Event,
    Failed,
    Finish,
    Generate,
    Launch,
    LlamaCppLaunch,
    Messages,
    Prompt,
    Sampling,
    Started,
)
from edged.worker.llamacpp import library
from edged.worker.llamacpp.engine import LlamaCppEngine

EDGE_GUIDE = Path(edged.store.__file__).parent / "builtin" / "edge-guide.gguf"
GREEDY = Sampling(temperature=0.0)

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)


def launch(
    path: Path = EDGE_GUIDE,
    *,
    context: int = 512,
    parallel: int = 8,
    pool: int | None = None,
    batch: int = 256,
    threads: int = 1,
) -> Launch:
    return Launch(
        model="test",
        engine="llamacpp",
        path=str(path),
        file_id="test",
        context=context,
        parallel=parallel,
        pool=pool or context * parallel,
        llamacpp=LlamaCppLaunch(threads=threads, threads_batch=threads, batch=batch),
    )


@contextlib.asynccontextmanager
async def running(launched: Launch) -> AsyncIterator[LlamaCppEngine]:
    def fault() -> None:
        raise AssertionError("the engine thread failed")

    engine = LlamaCppEngine(on_fault=fault)
    await engine.load(launched, lambda _: None)
    try:
        yield engine
    finally:
        await engine.close()


@dataclass
class CalledTool:
    id: str
    name: str
    text: str = ""

    @property
    def arguments(self) -> Any:
        return json.loads(self.text)


@dataclass
class Answer:
    content: str = ""
    reasoning: str = ""
    n_deltas: int = 0
    n_tokens: int = 0
    started: Started | None = None
    finish: Finish | None = None
    failed: Failed | None = None
    pieces: list[str] = field(default_factory=list)
    calls: list[CalledTool] = field(default_factory=list)
    logprobs: list[Chosen] = field(default_factory=list)

    def take(self, event: Event) -> None:
        assert self.finish is None, "nothing comes after the end"
        assert self.failed is None, "nothing comes after the end"
        match event:
            case Started():
                self.started = event
            case Delta():
                assert self.started is not None
                self.content += event.content
                self.reasoning += event.reasoning
                self.pieces.append(event.content)
                self.n_tokens += event.n_tokens
                self.logprobs += event.logprobs
                for piece in event.calls:
                    self.take_call(piece)
            case Finish():
                self.finish = event
            case Failed():
                self.failed = event

    def take_call(self, piece: CallDelta) -> None:
        if piece.index == len(self.calls):
            assert piece.id
            assert piece.name
            self.calls.append(CalledTool(piece.id, piece.name))
        else:
            assert not piece.id
            assert not piece.name
        assert piece.index == len(self.calls) - 1, "calls come one after the other"
        self.calls[piece.index].text += piece.arguments

    @property
    def done(self) -> Finish:
        assert self.finish is not None, self.failed
        return self.finish


_ids = iter(range(1, 1 << 30))


def request(prompt: Prompt | str, **more: Any) -> Generate:
    """A greedy request; a plain string is a chat with one user message."""
    if isinstance(prompt, str):
        prompt = chat(prompt)
    return Generate(prompt=prompt, id=next(_ids), **({"sampling": GREEDY} | more))


def chat(*turns: str) -> Messages:
    roles = ["user", "assistant"]
    return Messages([{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)])


async def ask(engine: LlamaCppEngine, prompt: Prompt | str, **more: Any) -> Answer:
    answer = Answer()
    async for event in engine.generate(request(prompt, **more)):
        answer.take(event)
    assert answer.finish or answer.failed
    return answer


# Other company in a batch and other borders of prefill chunks change logits by rounding: by up to
# 0.37 on edge-guide, whose Q8_0 rounds activations to eight bits. Where the two likeliest tokens
# are closer than that, in logits, either one is a right answer. In float32 there is no such doubt:
# `test_logits.py` asks for the very same text there, and for every logit.
NEAR_TIE = 0.4


class Choices(list[tuple[int, float]]):
    """The tokens of one answer, each with its lead over the second likeliest, in logits."""

    def same_as(self, other: Choices) -> bool:
        """Tell whether both chose alike throughout; asserts that only a near-tie parted them."""
        for (mine, lead), (theirs, other_lead) in zip(self, other, strict=False):
            if mine != theirs:
                assert min(lead, other_lead) < NEAR_TIE, "parted without a tie"
                return False
        assert len(self) == len(other)
        return True


async def choices(
    engine: LlamaCppEngine, prompts: list[Any], *, together: bool, **more: Any
) -> list[Choices]:
    """Ask all, at once or one after the other, and return what each answer chose.

    A prompt may be a whole request, made for this call alone.
    """
    asked = [p if isinstance(p, Generate) else request(p, **more) for p in prompts]
    found = {one.id: Choices() for one in asked}
    prepare = engine._preparer.prepare

    def prepare_and_listen(one: Generate) -> Any:
        prepared = prepare(one)
        sample = prepared.sampler.sample
        if one.id not in found:  # somebody else's, in company
            return prepared

        def listen(row: Any) -> int:
            token = sample(row)
            second, first = np.partition(row, len(row) - 2)[-2:]
            found[one.id].append((token, float(first - second)))
            return token

        prepared.sampler.sample = listen
        return prepared

    async def run(one: Generate) -> None:
        assert isinstance([event async for event in engine.generate(one)][-1], Finish)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._preparer, "prepare", prepare_and_listen)
        if together:
            await asyncio.gather(*map(run, asked))
        else:
            for one in asked:
                await run(one)
    return [found[one.id] for one in asked]


@contextlib.contextmanager
def begun_with(engine: LlamaCppEngine, text: str) -> Iterator[None]:
    """Let the answers of all requests made meanwhile begin with `text`, as if chosen so."""
    prepare = engine._preparer.prepare
    tokens = engine._runner.vocab.tokenize([(text, True)], wrap=False)

    def prepare_and_begin(one: Generate) -> Any:
        prepared = prepare(one)
        sample, left = prepared.sampler.sample, list(tokens)
        prepared.sampler.sample = lambda row: left.pop(0) if left else sample(row)
        return prepared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._preparer, "prepare", prepare_and_begin)
        yield


@contextlib.contextmanager
def reference(path: Path, n_ctx: int = 512, *, logits_all: bool = False) -> Iterator[Any]:
    """llama-cpp-python's own high-level class on the same file and settings."""
    llama_cpp = importlib.import_module("llama_cpp")
    lib = llama_cpp.llama_cpp
    original = lib.llama_model_default_params

    def as_the_worker() -> Any:
        params = original()
        params.use_extra_bufts = not library.has_broken_amx(lib)
        return params

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lib, "llama_model_default_params", as_the_worker)
        llama = llama_cpp.Llama(
            str(path),
            n_ctx=n_ctx,
            n_threads=1,
            n_threads_batch=1,
            flash_attn=True,
            logits_all=logits_all,
            verbose=False,
        )
    try:
        yield llama
    finally:
        llama.close()


async def wait_for(condition: Callable[[], bool], limit_s: float = 60) -> None:
    """Wait until `condition` holds."""
    for _ in range(int(limit_s / 0.002)):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("waited in vain")
