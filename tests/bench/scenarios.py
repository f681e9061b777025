"""What is measured, in the order of the table of targets."""

import asyncio
import statistics
import time
from collections.abc import Sequence

from tests.bench.busy import BUSY
from tests.bench.client import Answer, chat
from tests.bench.decode import DECODE
from tests.bench.prompts import Prompts, assistant, system, user
from tests.bench.restart import RESTART
from tests.bench.scenario import (
    EDGED,
    LLAMA_SERVER,
    Figures,
    Row,
    Scenario,
    Side,
    only_server,
)

SHARED_CLIENTS = 8
SHARED_SYSTEM_WORDS = 700
SHARED_TOKENS = 16


async def _shared(side: Side, prompts: Prompts) -> Figures:
    server = only_server(side)
    preamble = system(prompts.text("shared", SHARED_SYSTEM_WORDS))
    answers = await asyncio.gather(
        *(
            chat(server.address, [preamble, user(prompts.text(f"shared {i}", 12))], SHARED_TOKENS)
            for i in range(SHARED_CLIENTS)
        )
    )
    return {"ttft": statistics.median(answer.ttft_s for answer in answers)} | _cached(answers)


def _cached(answers: Sequence[Answer]) -> Figures:
    """Return the share of the prompts that was not computed, where the server counts it."""
    n_prompt = sum(answer.n_prompt for answer in answers)
    return {"cached": sum(a.n_cached for a in answers) / n_prompt * 100} if n_prompt else {}


CHAT_CLIENTS = 4
CHAT_TURNS = 4
CHAT_SYSTEM_WORDS = 350
CHAT_TOKENS = 32


async def _chats(side: Side, prompts: Prompts) -> Figures:
    server = only_server(side)
    preamble = system(prompts.text("chats", CHAT_SYSTEM_WORDS))

    async def conversation(client: int) -> list[Answer]:
        messages = [preamble]
        answers = []
        for turn in range(CHAT_TURNS):
            messages.append(user(prompts.text(f"chats {client} {turn}", 20)))
            answers.append(await chat(server.address, messages, CHAT_TOKENS))
            messages.append(assistant(answers[-1].text))
        return answers

    started = time.perf_counter()
    conversations = await asyncio.gather(*(conversation(i) for i in range(CHAT_CLIENTS)))
    wall_s = time.perf_counter() - started
    answers = [answer for conversation in conversations for answer in conversation]
    return {"wall": wall_s} | _cached(answers)


STALL_STREAMS = 4
STALL_TOKENS = 200
STALL_BEFORE = 8
STALL_WORDS = 1500
STALL_LIMIT_S = 60.0


async def _stall(side: Side, prompts: Prompts) -> Figures:
    server = only_server(side)
    streams = [Answer(0.0) for _ in range(STALL_STREAMS)]
    tasks = [
        asyncio.create_task(
            chat(server.address, [user(prompts.text(f"stall {i}", 20))], STALL_TOKENS, stream)
        )
        for i, stream in enumerate(streams)
    ]
    try:
        async with asyncio.timeout(STALL_LIMIT_S):
            while any(len(stream.arrivals) < STALL_BEFORE for stream in streams):
                if failed := next((t for t in tasks if t.done()), None):
                    failed.result()
                await asyncio.sleep(0.01)
        since = time.perf_counter()
        long = await chat(server.address, [user(prompts.text("stall", STALL_WORDS))], 4)
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return {
        "gap": max(gap for stream in streams for gap in stream.gaps_s(since)),
        "ttft": long.ttft_s,
    }


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        DECODE,
        Scenario(
            "shared",
            f"{SHARED_CLIENTS} clients at once, the same {SHARED_SYSTEM_WORDS}-word system prompt "
            f"that no cache holds, {SHARED_TOKENS} tokens each",
            (
                Row("ttft", "time to first token, p50", "s", False, {LLAMA_SERVER: 0.2}),
                Row("cached", "prompt tokens not computed", "%", True),
            ),
            (_shared,),
        ),
        Scenario(
            "chats",
            f"{CHAT_CLIENTS} clients with {CHAT_TURNS} turns each, the same "
            f"{CHAT_SYSTEM_WORDS}-word system prompt, {CHAT_TOKENS} tokens an answer",
            (
                Row("wall", "wall time", "s", False, {LLAMA_SERVER: 0.75}),
                Row("cached", "prompt tokens not computed", "%", True),
            ),
            (_chats,),
        ),
        Scenario(
            "stall",
            f"{STALL_STREAMS} streams of {STALL_TOKENS} tokens while a prompt of {STALL_WORDS} "
            "words arrives",
            (
                Row("gap", "worst gap between tokens", "s", False, {LLAMA_SERVER: 0.05}),
                Row("ttft", "time to first token of the long prompt", "s", False),
            ),
            (_stall,),
            # llama-cpp-python's server has one stream at a time, so that none can be stalled.
            sides=(EDGED, LLAMA_SERVER),
        ),
        BUSY,
        RESTART,
    )
}
