"""Does a worker really work? One generated token says more than a socket that answers."""

from __future__ import annotations

import asyncio
import contextlib

from edged.protocol import (
    LAST,
    Delta,
    Embed,
    Failed,
    Generate,
    Launch,
    Messages,
    Request,
    Rerank,
    Sampling,
    Text,
)
from edged.supervisor.worker_process import WorkerProcess

_TEXT = "1 2 3"


class ProofError(Exception):
    """The worker did not do what it is for; the message says what came instead."""


async def prove(worker: WorkerProcess, *, probe: str | None = None, limit_s: float) -> None:
    """Have `worker` generate one token (or one vector, one score), then answer its `probe`.

    Raises ProofError, also after `limit_s` for each of them.
    """
    await _ask(worker, _least(worker.launch), "one token", limit_s)
    if probe is not None and worker.launch.kind == "chat":
        conversation = Messages([{"role": "user", "content": probe}])
        request = Generate(conversation, Sampling(temperature=0.0), max_tokens=64)
        await _ask(worker, request, "an answer to its probe", limit_s)


def _least(launch: Launch) -> Request:
    if launch.kind == "embeddings":
        return Embed([Text(_TEXT)])
    if launch.kind == "rerank":
        return Rerank(_TEXT, [_TEXT])
    return Generate(Text(_TEXT), max_tokens=1)


async def _ask(worker: WorkerProcess, request: Request, what: str, limit_s: float) -> None:
    try:
        async with (
            asyncio.timeout(limit_s),
            contextlib.aclosing(worker.generate(request)) as events,
        ):
            said = False
            async for event in events:
                said = said or isinstance(event, Delta)
                if isinstance(event, Failed):
                    raise ProofError(f"{what} was asked for: {event.message}")
                if isinstance(event, LAST) and what.startswith("an answer") and not said:
                    raise ProofError(f"{what} was asked for, and nothing came")
    except TimeoutError:
        raise ProofError(f"{what} was asked for and did not come within {limit_s:.0f} s") from None
