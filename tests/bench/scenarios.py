"""What is measured: each scenario asks one server for one round of figures.

Targets are those of the llama.cpp engine's design: the ratio edged / llama-server, or, where there
is nothing to compare with, edged's figure itself.
"""

import asyncio
import dataclasses
import functools
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

from tests.bench.client import Answer, BenchError, chat
from tests.bench.prompts import Prompts, assistant, system, user
from tests.bench.servers import Server

Figures = dict[str, float]
Act = Callable[[Server, Prompts], Awaitable[Figures]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. ``target`` bounds the ratio: from below where more is better."""

    key: str
    label: str
    unit: str
    more_is_better: bool
    target: float | None = None


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A way to load a server, in one or more acts that together return a figure for each row.

    The sides take turns act by act: a shared machine's speed changes within seconds.
    """

    name: str
    about: str
    rows: tuple[Row, ...]
    acts: tuple[Act, ...]


DECODE_CLIENTS = (1, 2, 4, 8)
DECODE_TOKENS = 64
DECODE_PROMPT_WORDS = 20


async def _decode(server: Server, prompts: Prompts, n_clients: int) -> Figures:
    started = time.perf_counter()
    answers = await asyncio.gather(
        *(
            chat(
                server.address,
                [user(prompts.text(f"decode {n_clients} {i}", DECODE_PROMPT_WORDS))],
                DECODE_TOKENS,
            )
            for i in range(n_clients)
        )
    )
    wall_s = max(answer.ended for answer in answers) - started
    return {
        f"whole{n_clients}": sum(answer.n_tokens for answer in answers) / wall_s,
        f"steady{n_clients}": _steady_rate(answers),
    }


def _steady_rate(answers: Sequence[Answer]) -> float:
    """Return tokens/s of the time in which every client was being served tokens."""
    begin = max(answer.arrivals[0] for answer in answers)
    end = min(answer.ended for answer in answers)
    if end <= begin:
        raise BenchError("the clients were served one after the other, not together")
    tokens = sum(
        sum(begin < at <= end for at in answer.arrivals) * answer.n_tokens / len(answer.arrivals)
        for answer in answers
    )
    return tokens / (end - begin)


SHARED_CLIENTS = 8
SHARED_SYSTEM_WORDS = 700
SHARED_TOKENS = 16


async def _shared(server: Server, prompts: Prompts) -> Figures:
    preamble = system(prompts.text("shared", SHARED_SYSTEM_WORDS))
    answers = await asyncio.gather(
        *(
            chat(server.address, [preamble, user(prompts.text(f"shared {i}", 12))], SHARED_TOKENS)
            for i in range(SHARED_CLIENTS)
        )
    )
    return {
        "ttft": statistics.median(answer.ttft_s for answer in answers),
        "cached": sum(a.n_cached for a in answers) / sum(a.n_prompt for a in answers) * 100,
    }


CHAT_CLIENTS = 4
CHAT_TURNS = 4
CHAT_SYSTEM_WORDS = 350
CHAT_TOKENS = 32


async def _chats(server: Server, prompts: Prompts) -> Figures:
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
    return {
        "wall": wall_s,
        "cached": sum(a.n_cached for a in answers) / sum(a.n_prompt for a in answers) * 100,
    }


STALL_STREAMS = 4
STALL_TOKENS = 200
STALL_BEFORE = 8
STALL_WORDS = 1500
STALL_LIMIT_S = 60.0


async def _stall(server: Server, prompts: Prompts) -> Figures:
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


def _clients(n: int) -> str:
    return "1 client" if n == 1 else f"{n} clients"


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "decode",
            f"unique prompts of {DECODE_PROMPT_WORDS} words, {DECODE_TOKENS} tokens each, "
            "all clients together; whole: from the first request to the last token; "
            "steady: while every client was receiving",
            tuple(
                row
                for n in DECODE_CLIENTS
                for row in (
                    Row(f"whole{n}", f"{_clients(n)}, whole", "tokens/s", True, 0.97),
                    Row(f"steady{n}", f"{_clients(n)}, steady", "tokens/s", True),
                )
            ),
            tuple(functools.partial(_decode, n_clients=n) for n in DECODE_CLIENTS),
        ),
        Scenario(
            "shared",
            f"{SHARED_CLIENTS} clients at once, the same {SHARED_SYSTEM_WORDS}-word system prompt "
            f"that no cache holds, {SHARED_TOKENS} tokens each",
            (
                Row("ttft", "time to first token, p50", "s", False, 0.2),
                Row("cached", "prompt tokens not computed", "%", True),
            ),
            (_shared,),
        ),
        Scenario(
            "chats",
            f"{CHAT_CLIENTS} clients with {CHAT_TURNS} turns each, the same "
            f"{CHAT_SYSTEM_WORDS}-word system prompt, {CHAT_TOKENS} tokens an answer",
            (
                Row("wall", "wall time", "s", False, 0.75),
                Row("cached", "prompt tokens not computed", "%", True),
            ),
            (_chats,),
        ),
        Scenario(
            "stall",
            f"{STALL_STREAMS} streams of {STALL_TOKENS} tokens while a prompt of {STALL_WORDS} "
            "words arrives",
            (
                Row("gap", "worst gap between tokens", "s", False, 0.05),
                Row("ttft", "time to first token of the long prompt", "s", False),
            ),
            (_stall,),
        ),
    )
}
