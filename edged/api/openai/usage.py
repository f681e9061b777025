"""What every reply carries beside its text: tokens, times, and who made it."""

from __future__ import annotations

import functools
import zlib
from typing import Self

import msgspec
from msgspec import Struct

from edged import __version__, protocol
from edged.plan import ModelPlan
from edged.protocol import Finish, Launch


class PromptDetails(Struct):
    """Of `usage.prompt_tokens_details`."""

    cached_tokens: int


class CompletionDetails(Struct):
    """Of `usage.completion_tokens_details`."""

    reasoning_tokens: int


class Usage(Struct):
    """OpenAI's `usage`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails

    @classmethod
    def of(cls, usage: protocol.Usage) -> Self:
        """Return the wire form of `usage`."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptDetails(usage.cached_tokens),
            completion_tokens_details=CompletionDetails(usage.reasoning_tokens),
        )


class Timings(Struct):
    """llama-server's `timings`, and the wait before: counts, ms, tokens per second."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float
    queue_ms: float

    @classmethod
    def of(cls, finish: Finish) -> Self:
        """Return the times of a generation that ended."""
        usage, timings = finish.usage, finish.timings
        n_prompt = usage.prompt_tokens - usage.cached_tokens
        n_predicted = usage.completion_tokens
        return cls(
            cache_n=usage.cached_tokens,
            prompt_n=n_prompt,
            prompt_ms=round(timings.prefill_ms, 3),
            prompt_per_token_ms=_ratio(timings.prefill_ms, n_prompt),
            prompt_per_second=_ratio(n_prompt * 1000, timings.prefill_ms),
            predicted_n=n_predicted,
            predicted_ms=round(timings.decode_ms, 3),
            predicted_per_token_ms=_ratio(timings.decode_ms, n_predicted),
            predicted_per_second=_ratio(n_predicted * 1000, timings.decode_ms),
            queue_ms=round(timings.queue_ms, 3),
        )


def _ratio(amount: float, per: float) -> float:
    return round(amount / per, 3) if per else 0.0


def fingerprint(plan: ModelPlan) -> str:
    """Return what changes when the same request may get another answer: engine and launch."""
    return _fingerprint(plan.launch) if plan.launch else f"edged-{__version__}"


@functools.lru_cache(64)
def _fingerprint(launch: Launch) -> str:
    return f"edged-{__version__}-{launch.engine}-{zlib.crc32(msgspec.json.encode(launch)):08x}"
