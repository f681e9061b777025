"""Answers to short unique prompts, some clients together: edged beside all peers."""

import asyncio
import functools
import statistics
import time
from collections.abc import Sequence

from tests.bench.client import Answer, BenchError, chat
from tests.bench.prompts import Prompts, user
from tests.bench.scenario import (
    BATCHED_BENCH,
    EDGED,
    LLAMA_CPP_PYTHON,
    LLAMA_SERVER,
    Figures,
    Row,
    Scenario,
    Side,
)
from tests.bench.servers import Server

CLIENTS = (1, 2, 4, 8)
TOKENS = 64
WORDS = 20
# What those words and the template come to; llama-batched-bench takes tokens, not words.
PROMPT_TOKENS = 40
PROMPT_TOLERANCE = 0.15


async def _decode(side: Side, prompts: Prompts, n_clients: int) -> Figures:
    if isinstance(side, Server):
        return await decode(side, prompts, n_clients, "decode")
    found = await side.measure(n_clients, PROMPT_TOKENS, TOKENS)
    return {f"whole{n_clients}": found.whole_per_s, f"steady{n_clients}": found.steady_per_s}


async def decode(server: Server, prompts: Prompts, n_clients: int, label: str) -> Figures:
    """Let so many clients ask at once, each for ``TOKENS`` tokens; return tokens/s."""
    started = time.perf_counter()
    answers = await asyncio.gather(
        *(
            chat(server.address, [user(prompts.text(f"{label} {n_clients} {i}", WORDS))], TOKENS)
            for i in range(n_clients)
        )
    )
    wall_s = max(answer.ended for answer in answers) - started
    found = {f"whole{n_clients}": sum(answer.n_tokens for answer in answers) / wall_s}
    n_prompt = statistics.mean(answer.n_prompt for answer in answers)
    if n_prompt and abs(n_prompt / PROMPT_TOKENS - 1) > PROMPT_TOLERANCE:
        raise BenchError(f"prompts of {n_prompt:.0f} tokens are unlike {PROMPT_TOKENS}")
    steady = _steady_per_s(answers)
    if steady is not None:
        found[f"steady{n_clients}"] = steady
    elif server.name != LLAMA_CPP_PYTHON:
        raise BenchError("the clients were served one after the other, not together")
    return found


def _steady_per_s(answers: Sequence[Answer]) -> float | None:
    """Return tokens/s of the time in which every client was being served tokens, if there is."""
    begin = max(answer.arrivals[0] for answer in answers)
    end = min(answer.ended for answer in answers)
    if end <= begin:
        return None
    tokens = sum(
        sum(begin < at <= end for at in answer.arrivals) * answer.n_tokens / len(answer.arrivals)
        for answer in answers
    )
    return tokens / (end - begin)


def _rows(n_clients: int) -> tuple[Row, Row]:
    clients = "1 client" if n_clients == 1 else f"{n_clients} clients"
    whole = {LLAMA_SERVER: 0.97, BATCHED_BENCH: 0.95}
    return (
        Row(f"whole{n_clients}", f"{clients}, whole", "tokens/s", True, whole),
        Row(f"steady{n_clients}", f"{clients}, steady", "tokens/s", True, {BATCHED_BENCH: 0.95}),
    )


DECODE = Scenario(
    "decode",
    f"unique prompts of {WORDS} words, {TOKENS} tokens each, all clients together; whole: from "
    "the first request to the last token; steady: while every client was receiving; "
    f"{BATCHED_BENCH} has prompts of {PROMPT_TOKENS} tokens, neither server nor texts, and takes "
    f"tokens at random instead of choosing them; {LLAMA_CPP_PYTHON} serves one client after the "
    "other",
    tuple(row for n in CLIENTS for row in _rows(n)),
    tuple(functools.partial(_decode, n_clients=n) for n in CLIENTS),
    sides=(EDGED, LLAMA_SERVER, LLAMA_CPP_PYTHON, BATCHED_BENCH),
)
