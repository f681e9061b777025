"""An engine with its native part, what it holds, and the words to ask it with."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edged.protocol import (
    Delta,
    Event,
    Failed,
    Finish,
    Generate,
    Launch,
    LmdeployLaunch,
    Messages,
    Started,
    Text,
)
from edged.worker.lmdeploy.engine import LmdeployEngine
from edged.worker.lmdeploy.library import Library
from tests.lmdeploy.contract.played import Native, PlayedLibrary

CONTEXT = 512
PARALLEL = 4


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something holds; fails after 20 s."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to be")


class Box:
    """An engine with its native part, and what it holds."""

    def __init__(self, folder: Path, abort_s: float = 60.0, **settings: Any) -> None:
        self.native: Any = self.make_native()
        self.faults = 0
        self.engine = LmdeployEngine(self._fault, self._open, abort_s=abort_s)
        self.launch = Launch(
            "tiny", "lmdeploy", str(folder), "1", CONTEXT, PARALLEL, CONTEXT * PARALLEL,
            lmdeploy=LmdeployLaunch("/python", (0,), 1 << 20, 1 << 20, **settings),
        )  # fmt: skip

    @staticmethod
    def make_native() -> Any:
        """Return what plays the native part."""
        return Native()

    def _fault(self) -> None:
        self.faults += 1

    def _open(self, launch: Launch) -> Library:
        self.library = PlayedLibrary(launch, self.native)
        return self.library

    def says(self, text: str, end: str = "<|im_end|>") -> None:
        vocab = self.engine._preparer.vocab
        self.native.answer = vocab.tokenize([(text + end, True)], wrap=False)

    async def ask(self, prompt: Any = "hi", **fields: Any) -> list[Event]:
        prompt = Text(prompt) if isinstance(prompt, str) else prompt
        return [event async for event in self.engine.generate(Generate(prompt, id=1, **fields))]

    async def idle(self) -> None:
        """Wait until nothing is held; fails if that does not come to be."""
        await until(lambda: (self.library.pool.sessions, self.library.pool.out) == (0, 0))


def chat(text: str = "hi", **fields: Any) -> Messages:
    return Messages([{"role": "user", "content": text}], **fields)


def content(events: list[Event]) -> str:
    return "".join(event.content for event in events if isinstance(event, Delta))


def finish(events: list[Event]) -> Finish:
    assert isinstance(events[0], Started), events
    assert isinstance(events[-1], Finish), events
    assert sum(isinstance(event, Finish | Failed) for event in events) == 1
    return events[-1]


def failed(events: list[Event]) -> Failed:
    assert isinstance(events[-1], Failed), events
    assert sum(isinstance(event, Finish | Failed) for event in events) == 1
    return events[-1]


async def open_request(box: Box, request_id: int = 1) -> Any:
    events = box.engine.generate(Generate(Text("hi"), id=request_id))
    assert isinstance(await anext(events), Started)
    return events


async def abort_many(box: Box, n_requests: int, chance: random.Random) -> Counter[str]:
    """Abort requests in all states, twice as many at once as there are places.

    Every other one is left after some of its events, the rest are cancelled after some turns of the
    loop, wherever they are then. Return how many had got how far.
    """
    box.says("abcdefgh" * 8)
    reached: Counter[str] = Counter()

    async def use(request_id: int, n_events: int) -> None:
        events = box.engine.generate(Generate(Text("hi"), id=request_id))
        state = "Nothing"
        try:
            async for event in events:
                state = type(event).__name__
                n_events -= 1
                if not n_events:
                    return
        finally:
            reached[state] += 1
            await events.aclose()

    numbers = iter(range(1, n_requests + 1))

    async def client() -> None:
        for number in numbers:
            if number % 2:
                await use(number, chance.randrange(1, 60))
                continue
            task = asyncio.ensure_future(use(number, -1))
            for _ in range(chance.randrange(1, 200)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})

    await asyncio.gather(*(client() for _ in range(2 * PARALLEL)))
    return reached
