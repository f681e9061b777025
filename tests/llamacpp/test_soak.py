"""A worker that has answered thousands of requests of all kinds is no larger than after the first.

Takes 40 s on two idle cores. `EDGED_TEST_SOAK` says how many requests, if 2,000 are too few.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from edged.protocol import (
    Delta,
    Generate,
    Grammar,
    JsonSchema,
    Messages,
    Regex,
    Sampling,
    Stats,
    Text,
    ToolChoice,
)
from edged.supervisor.worker_process import WorkerProcess
from tests.llamacpp.support import Answer, chat, launch, needs_llama_cpp, request, wait_for

pytestmark = needs_llama_cpp

N_REQUESTS = int(os.environ.get("EDGED_TEST_SOAK", "2000"))
# Until the caches are full: the grammars that are kept, which most of a soak would be spent on
# otherwise, the pool's cells, the allocator's arenas.
N_GRAMMARS = 80
N_WARM = 200
AT_ONCE = 24
GROWTH = 1.02

WORDS = [
    "the",
    "box",
    "model",
    "answers",
    "a question",
    "about logs",
    "memory",
    "日志",
    "模型",
    "🦊",
]
SYSTEM = {"role": "system", "content": "You are the guide of this box and answer shortly. " * 6}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SAMPLINGS = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, ignore_eos=True),
    Sampling(temperature=1.2, top_p=0.9, top_k=40, seed=3),
    Sampling(temperature=0.8, min_p=0.05, repeat_penalty=1.1, presence_penalty=0.2),
    Sampling(temperature=1.0, dry_multiplier=0.8, xtc_probability=0.3, xtc_threshold=0.1),
    Sampling(temperature=0.7, typical_p=0.9, logit_bias={40: -5.0}, min_tokens=3),
]


class Client:
    """Draws requests, sends them to one worker and remembers how they ended."""

    def __init__(self, worker: WorkerProcess, seed: int) -> None:
        self.worker = worker
        self.dice = random.Random(seed)
        self.ends: Counter[str] = Counter()
        self.n_asked = 0

    async def ask(self, n: int, kinds: str = "draw_") -> None:
        """Ask `n` requests, `AT_ONCE` together."""
        at_once = asyncio.Semaphore(AT_ONCE)
        names = [name for name in dir(self) if name.startswith(kinds)]

        async def one() -> None:
            async with at_once:
                self.n_asked += 1
                await self._run(getattr(self, self.dice.choice(names))())

        async with asyncio.TaskGroup() as tasks:
            for _ in range(n):
                tasks.create_task(one())

    async def _run(self, asked: Generate) -> None:
        patience = self.dice.choice([0, 1, 3]) if self.dice.random() < 0.2 else None
        answer, n_events = Answer(), 0
        events = self.worker.generate(asked)
        async for event in events:
            answer.take(event)
            n_events += isinstance(event, Delta)
            if patience is not None and n_events >= patience:
                break
        await events.aclose()
        if answer.finish is not None:
            self.ends[answer.finish.reason] += 1
        else:
            self.ends[answer.failed.code if answer.failed else "aborted"] += 1

    # ── kinds of requests ──

    def text(self, longest: int = 40) -> str:
        return " ".join(self.dice.choices(WORDS, k=self.dice.randint(1, longest)))

    def of(self, prompt: Any, **more: Any) -> Generate:
        settings = {
            "max_tokens": self.dice.randint(1, 24),
            "sampling": self.dice.choice(SAMPLINGS),
            "group": self.dice.choice(["", "", "a", "b"]),
        }
        return request(prompt, **(settings | more))

    def draw_chat(self) -> Generate:
        return self.of(self.text())

    def draw_long_text(self) -> Generate:
        return self.of(Text(self.text(160)))

    def draw_shared_prefix(self) -> Generate:
        asked = chat(self.text(5))
        return self.of(replace(asked, messages=[SYSTEM, *asked.messages]))

    def draw_same_prompt(self) -> Generate:
        sampling = Sampling(temperature=1.0, seed=self.dice.randint(0, 9))
        return self.of("What is edged?", sampling=sampling)

    def draw_conversation(self) -> Generate:
        return self.of(chat(*(self.text(12) for _ in range(3))))

    def draw_likelihoods(self) -> Generate:
        return self.of(self.text(), logprobs=self.dice.randint(0, 5))

    def draw_stop(self) -> Generate:
        return self.of(self.text(), stop=["a", "edged", "\n"])

    def draw_schema(self) -> Generate:
        bound = self.dice.randint(1, 400)  # most of them are compiled for the first time
        schema = {
            "type": "object",
            "properties": {"n": {"type": "integer", "maximum": bound, "minimum": 0}},
            "required": ["n"],
        }
        return self.of(self.text(5), constraint=JsonSchema(schema))

    def draw_regex(self) -> Generate:
        return self.of(self.text(5), constraint=Regex(self.dice.choice(["[0-9]{3}", "(yes|no)"])))

    def draw_grammar(self) -> Generate:
        return self.of(self.text(5), constraint=Grammar('root ::= "a" [0-9]+'))

    def draw_tools(self) -> Generate:
        asked: Messages = replace(chat(self.text(6)), tools=[WEATHER])
        mode = self.dice.choice(["auto", "required"])
        return self.of(asked, tool_choice=ToolChoice(mode=mode), max_tokens=80)

    def draw_too_long(self) -> Generate:
        return self.of(Text("word " * 2000))

    def draw_impossible(self) -> Generate:
        return self.of(self.text(), sampling=Sampling(logit_bias={10**6: 1.0}))


@pytest.mark.timeout(300 + N_REQUESTS)
async def test_worker_ends_a_soak_with_the_memory_it_began_with() -> None:
    worker = WorkerProcess(launch(context=256, parallel=6, pool=420, batch=64))
    await worker.start()
    client = Client(worker, seed=11)
    try:
        await client.ask(N_GRAMMARS, "draw_schema")
        await client.ask(N_WARM)
        began = await at_rest(worker)
        await client.ask(N_REQUESTS)
        ended = await at_rest(worker)
        assert ended <= GROWTH * began, f"{began / 1e6:.2f} → {ended / 1e6:.2f} MB"
        assert worker.exit is None
        assert sum(client.ends.values()) == client.n_asked == N_GRAMMARS + N_WARM + N_REQUESTS
        answered = {"stop", "length", "tool_calls", "aborted"}
        refused = {"context_length_exceeded", "invalid_value"}
        assert client.ends.keys() == answered | refused
        assert worker.stats is not None
        assert worker.stats.preemptions > 0
    finally:
        await worker.stop("the test is over")


async def at_rest(worker: WorkerProcess) -> int:
    """Wait until the worker holds no request any more; return its resident memory in bytes."""

    def idle() -> bool:
        stats: Stats | None = worker.stats
        return not worker.open and stats is not None and stats.running == stats.waiting == 0

    await wait_for(idle)
    found = worker.rss_bytes()
    assert found is not None
    return found
