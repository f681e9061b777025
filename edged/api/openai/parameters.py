"""A parameter is honoured or refused, never dropped: the checks that types cannot make."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from edged import errors
from edged.api.openai.schema import Common
from edged.protocol import Sampling

# Known names that nothing here honours yet, each with the values that ask for nothing.
# `null` asks for nothing anywhere; ANY: the name does nothing unless another one is set.
ANY = None
REFUSED: dict[str, tuple[Any, ...] | None] = {
    # OpenAI
    "audio": (),
    "function_call": ("none", "auto"),  # without functions there is nothing to choose
    "functions": ([],),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    # llama-server
    "cache_prompt": (True,),
    "dry_allowed_length": ANY,
    "dry_base": ANY,
    "dry_multiplier": (0,),
    "dry_penalty_last_n": ANY,
    "dry_sequence_breakers": ANY,
    "dynatemp_exponent": ANY,
    "dynatemp_range": (0,),
    "grammar": ("",),
    "grammar_lazy": (False,),
    "id_slot": (-1,),
    "json_schema": (),
    "lora": ([],),
    "mirostat": (0,),
    "mirostat_eta": ANY,
    "mirostat_tau": ANY,
    "n_discard": (0,),
    "n_indent": (0,),
    "n_keep": (0,),
    "n_probs": (0,),
    "reasoning_format": ("auto",),
    "repeat_last_n": (),
    "return_tokens": (False,),
    "samplers": (),
    "t_max_predict_ms": (-1, 0),
    "thinking_budget_tokens": (-1,),
    "timings_per_token": (False,),
    "top_n_sigma": (-1, 0),
    "xtc_probability": (0,),
    "xtc_threshold": ANY,
    # vLLM, SGLang
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "prompt_logprobs": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}

_MOST_IGNORED = 20
_LONGEST_NAME = 64
_TOKEN_ID = re.compile(r"[0-9]{1,9}")


def check_names(raw: Mapping[str, Any], wire: type[Common]) -> list[str]:
    """Return the names in `raw` that nobody knows, for the log.

    Raises UnsupportedParameter for a refused name whose value asks for something.
    """
    unknown = []
    for name, value in raw.items():
        if name in wire.__struct_fields__:
            continue
        if name not in REFUSED:
            unknown.append(name[:_LONGEST_NAME])
        elif not _asks_nothing(value, REFUSED[name]):
            raise errors.UnsupportedParameter(
                f"`{name}` is not supported by this version of edged; leave it out", param=name
            )
    return list(itertools.islice(unknown, _MOST_IGNORED))


def _asks_nothing(value: Any, neutral: tuple[Any, ...] | None) -> bool:
    if value is None or neutral is None:
        return True
    # bool is an int to Python, not to JSON
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral
    )


def check_common(wire: Common, raw: Mapping[str, Any]) -> None:
    """Raise for values that are well typed but cannot be honoured, or contradict each other."""
    if wire.n is not None and wire.n > 1:
        raise errors.UnsupportedParameter(
            "`n` above 1 is not supported by this version of edged; send the request n times",
            param="n",
        )
    if wire.stream_options is None:
        return
    if not wire.stream:
        raise errors.InvalidRequest("`stream_options` needs `stream: true`", param="stream_options")
    if wire.stream_options.include_obfuscation:
        raise errors.UnsupportedParameter(
            "`include_obfuscation` is not supported by this version of edged; leave it out",
            param="stream_options.include_obfuscation",
        )
    if raw["stream_options"].get("continuous_usage_stats"):
        raise errors.UnsupportedParameter(
            "`continuous_usage_stats` is not supported; `include_usage` gives the totals",
            param="stream_options.continuous_usage_stats",
        )


def wants_usage(wire: Common) -> bool:
    """Return whether a stream ends with a chunk of usage."""
    return bool(wire.stream_options and wire.stream_options.include_usage)


def sampling(wire: Common) -> Sampling:
    """Return what the request says about sampling; None where it is silent.

    Raises InvalidRequest for a bias that is not on a token id, or two different penalties.
    """
    if None not in (wire.repeat_penalty, wire.repetition_penalty) and (
        wire.repeat_penalty != wire.repetition_penalty
    ):
        raise errors.InvalidRequest(
            "`repeat_penalty` and `repetition_penalty` mean the same and differ",
            param="repetition_penalty",
        )
    repeat = wire.repetition_penalty if wire.repeat_penalty is None else wire.repeat_penalty
    return Sampling(
        temperature=wire.temperature,
        top_p=wire.top_p,
        top_k=0 if wire.top_k == -1 else wire.top_k,  # vLLM's word for off
        min_p=wire.min_p,
        typical_p=wire.typical_p,
        repeat_penalty=repeat,
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
        seed=wire.seed,
        logit_bias=_logit_bias(wire.logit_bias),
        ignore_eos=wire.ignore_eos,
    )


def _logit_bias(wire: dict[str, float] | None) -> dict[int, float] | None:
    if not wire:
        return None
    for key in wire:
        if not _TOKEN_ID.fullmatch(key):
            raise errors.InvalidRequest(
                f"`logit_bias`: {key[:50]!r} is not a token id", param="logit_bias"
            )
    return {int(key): bias for key, bias in wire.items()}


def stops(wire: Common) -> list[str]:
    """Return the stop strings."""
    if wire.stop is None:
        return []
    return [wire.stop] if isinstance(wire.stop, str) else wire.stop
