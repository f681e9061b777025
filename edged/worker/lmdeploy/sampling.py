"""A request's sampling as the fields of LMDeploy's `GenerationConfig`; what it lacks is refused.

LMDeploy takes much without a word: fields that TurboMind never sees, values that its kernels cut.
So every field is mapped, refused by name, or off.
"""

from __future__ import annotations

from typing import Any

from edged.errors import InvalidRequest, UnsupportedParameter
from edged.protocol import DEFAULTS, Generate, Sampling

_MOST_TOP_K = 1024  # of TurboMind's kernels
_MOST_LIKELIHOODS = 1024
# Two buffers of 4 kB a token are taken in advance for log-probabilities.
MOST_WITH_LOGPROBS = 8192
#: Field → the value that switches it off.
_LACKING: dict[str, Any] = {
    "typical_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": None,
    "dry_multiplier": 0.0,
    "xtc_probability": 0.0,
}


def fields(request: Generate, *, room: int, ends: frozenset[int]) -> dict[str, Any]:
    """Return the fields of a `GenerationConfig`; raises InvalidRequest and its kind.

    `room`: tokens that the context has left; `ends`: those that end an answer of this model.
    """
    said = request.sampling.over(DEFAULTS)
    _refuse_lacking(said)
    most = _most_tokens(request, room)
    found: dict[str, Any] = {
        "max_new_tokens": most,
        "min_new_tokens": min(said.min_tokens or 0, most) or None,
        "ignore_eos": bool(said.ignore_eos),
        "stop_token_ids": sorted(ends.union(request.stop_tokens)),
        "skip_special_tokens": False,
        "repetition_penalty": said.repeat_penalty,
        "do_sample": said.temperature != 0.0,
    }
    if request.logprobs is not None:
        if request.logprobs > _MOST_LIKELIHOODS:
            raise InvalidRequest(
                f"at most {_MOST_LIKELIHOODS} log-probabilities a token", param="logprobs"
            )
        found["logprobs"] = max(1, request.logprobs)
    if found["do_sample"]:
        found |= _choice(said)
    elif said.repeat_penalty != 1.0:
        # LMDeploy drops the penalty of a greedy answer; the likeliest of one is the same thing
        found |= {"do_sample": True, "top_k": 1, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
    return found


def _choice(said: Sampling) -> dict[str, Any]:
    top_k = said.top_k or 0
    if top_k > _MOST_TOP_K:
        raise UnsupportedParameter(
            f"this model's engine knows top_k up to {_MOST_TOP_K}; 0 switches it off",
            param="top_k",
        )
    seed = said.seed
    return {
        "temperature": said.temperature,
        "top_p": said.top_p,
        "top_k": top_k,
        "min_p": said.min_p,
        # any number is a seed to us, 64 bits without a sign to it
        "random_seed": None if seed is None else seed & ((1 << 64) - 1),
    }


def _refuse_lacking(said: Sampling) -> None:
    for name, off in _LACKING.items():
        value = getattr(said, name)
        if value != off and value:
            raise UnsupportedParameter(
                f"`{name}` is nothing that this model's engine (LMDeploy) can do; leave it out",
                param=name,
            )


def _most_tokens(request: Generate, room: int) -> int:
    wanted = request.max_tokens
    if wanted is not None and wanted < 1:
        raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
    most = room if wanted is None else min(wanted, room)
    if request.logprobs is None or most <= MOST_WITH_LOGPROBS:
        return most
    if wanted is None:
        return MOST_WITH_LOGPROBS
    raise UnsupportedParameter(
        f"with log-probabilities this model's engine writes {MOST_WITH_LOGPROBS} tokens at most; "
        "lower max_tokens",
        param="max_tokens",
    )
