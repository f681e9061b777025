"""What `edged bench` found: the shape of `--json`, which table and chart are made from.

Times are in s, sizes in bytes, rates per second.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Self

from msgspec import Struct

from edged.cli.bench.answer import Answer, decode_rate
from edged.hardware import Hardware
from edged.protocol import Kind
from edged.status import Settings


class Figure(Struct, frozen=True):
    """One thing that was measured several times, as often as the time allowed."""

    median: float
    lowest: float
    highest: float
    runs: tuple[float, ...]  # in their order

    @classmethod
    def of(cls, runs: Sequence[float]) -> Self:
        """Return the figure of at least one run, to five significant digits."""
        rounded = [float(f"{run:.5g}") for run in runs]
        return cls(statistics.median(rounded), min(rounded), max(rounded), tuple(rounded))


class Decode(Struct, frozen=True):
    """So many clients at once, each with a short prompt of its own."""

    clients: int
    completion_tokens: int  # of each answer
    tokens_per_s: Figure  # of all together, while every one was receiving
    ttft_s: Figure  # of the slowest client

    @classmethod
    def of(cls, clients: int, completion_tokens: int, runs: Sequence[Sequence[Answer]]) -> Self:
        """Return the figures of at least one run, each with an answer for every client."""
        return cls(
            clients,
            completion_tokens,
            Figure.of([decode_rate(answers) or 0.0 for answers in runs]),
            Figure.of([max(answer.ttft_s for answer in answers) for answers in runs]),
        )


class Prompt(Struct, frozen=True):
    """One client with a long prompt: new, and then once more with another end."""

    prompt_tokens: int
    tokens_per_s: Figure  # of the new one: its tokens by the time to the first token
    ttft_s: Figure
    shared_ttft_s: Figure
    shared_tokens: int  # of the second prompt, that were found in memory; median

    @classmethod
    def of(cls, runs: Sequence[tuple[Answer, Answer]]) -> Self:
        """Return the figures of at least one run, each a new prompt's answer and the other's."""
        return cls(
            round(statistics.median(new.prompt_tokens for new, _ in runs)),
            Figure.of([(new.prompt_tokens - new.cached_tokens) / new.ttft_s for new, _ in runs]),
            Figure.of([new.ttft_s for new, _ in runs]),
            Figure.of([again.ttft_s for _, again in runs]),
            round(statistics.median(again.cached_tokens for _, again in runs)),
        )


class Inputs(Struct, frozen=True):
    """So many clients at once that send inputs to an embeddings or rerank model, back to back."""

    clients: int
    inputs_each: int  # of a request
    inputs_per_s: Figure
    tokens_per_s: Figure
    request_s: Figure  # median of the requests

    @classmethod
    def of(
        cls,
        clients: int,
        inputs_each: int,
        runs: Sequence[tuple[float, Sequence[tuple[float, int]]]],
    ) -> Self:
        """Return the figures of at least one run: its s, and s and tokens of each request."""
        return cls(
            clients,
            inputs_each,
            Figure.of([inputs_rate(took_s, sent, inputs_each) for took_s, sent in runs]),
            Figure.of([sum(n for _, n in sent) / took_s for took_s, sent in runs]),
            Figure.of([statistics.median(s for s, _ in sent) for _, sent in runs]),
        )


def inputs_rate(took_s: float, sent: Sequence[tuple[float, int]], inputs_each: int) -> float:
    """Return the inputs per second of these requests together, of `inputs_each` each."""
    return len(sent) * inputs_each / took_s


class Others(Struct, frozen=True):
    """What else the daemon had to do meanwhile: the figures are then too low."""

    open: int  # requests of others that ran or waited between two measurements, at most
    answered: int  # requests of others that ended meanwhile


class Report(Struct, frozen=True, kw_only=True):
    """Everything. `decode` and `prompt` are a chat model's, the others' are `alone_s`, `inputs`."""

    edged: str
    date: str
    seconds: float  # that the measurement took, without the load
    model: str
    kind: Kind
    engine: str
    build: str | None
    why: tuple[str, ...]
    context: int
    parallel: int
    settings: Settings | None
    threads_reason: str = ""  # why fewer threads than chosen ran at the end
    hardware: Hardware
    load_s: float | None  # when it was loaded the last time
    memory_bytes: int | None  # of the worker, after the last measurement
    daemon_memory_bytes: int
    prompt: Prompt | None = None
    decode: tuple[Decode, ...] = ()
    alone_s: Figure | None = None  # one request with one input
    inputs: tuple[Inputs, ...] = ()
    others: Others
    missing: tuple[str, ...] = ()  # what the time was too short for
