"""A parameter is honoured or refused, never dropped: the checks that types cannot make."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edged import errors
from edged.api.entry import Addressed, differs
from edged.api.openai.formats import to_constraint
from edged.api.openai.schema import ChatRequest, Common, CompletionRequest
from edged.protocol import Constraint, Generate, Sampling

# Known names that nothing here honours yet, each with the values that ask for nothing.
# `null` asks for nothing anywhere; ANY: the name does nothing unless another one is set.
ANY = None
REFUSED: dict[str, tuple[Any, ...] | None] = {
    # OpenAI
    "audio": (),
    "function_call": ("none", "auto"),  # without functions there is nothing to choose
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "best_of": (1,),
    # llama-server
    "cache_prompt": (True,),
    "dynatemp_exponent": ANY,
    "dynatemp_range": (0,),
    "grammar_lazy": (False,),
    "id_slot": (-1,),
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
    "timings_per_token": (False,),
    "top_n_sigma": (-1, 0),
    # vLLM, SGLang
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "chat_template": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "prompt_logprobs": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}

MOST_CHOICES = 128  # of one request
_MOST_IGNORED = 20
_LONGEST_NAME = 64
_ELSEWHERE = {*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__}
_TOKEN_ID = re.compile(r"[0-9]{1,9}")


def check_names(
    raw: Mapping[str, Any],
    wire: type[Addressed],
    refused: Mapping[str, tuple[Any, ...] | None] = REFUSED,
) -> list[str]:
    """Return the names in `raw` that nobody knows, for the log.

    Raises UnsupportedParameter for a refused name whose value asks for something.
    """
    unknown = []
    for name, value in raw.items():
        if name in wire.__struct_fields__:
            continue
        if name in _ELSEWHERE:
            if value not in (None, False, "", 0, [], {}):
                raise errors.UnsupportedParameter(
                    f"`{name}` is not a parameter of this endpoint; leave it out", param=name
                )
        elif name not in refused:
            unknown.append(name[:_LONGEST_NAME])
        elif not _asks_nothing(value, refused[name]):
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
    if differs(wire.repeat_penalty, wire.repetition_penalty):
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
        min_tokens=wire.min_tokens,
        dry_multiplier=wire.dry_multiplier,
        dry_base=wire.dry_base,
        dry_allowed_length=wire.dry_allowed_length,
        dry_penalty_last_n=wire.dry_penalty_last_n,
        dry_sequence_breakers=wire.dry_sequence_breakers,
        xtc_probability=wire.xtc_probability,
        xtc_threshold=wire.xtc_threshold,
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


def constraint(wire: Common) -> Constraint | None:
    """Return what the answer must look like, in whatever way the request says it."""
    return to_constraint(
        response_format=wire.response_format,
        json_schema=wire.json_schema,
        grammar=wire.grammar,
        structured_outputs=wire.structured_outputs,
        guided_json=wire.guided_json,
        guided_regex=wire.guided_regex,
        guided_choice=wire.guided_choice,
        guided_grammar=wire.guided_grammar,
    )


def several(prompts: Sequence[Generate], n: int, defaults: Sampling) -> list[Generate]:
    """Return `n` generations of each prompt; with a seed, each of them has its own.

    `defaults`: the model's, which may have the seed.

    Raises InvalidRequest when that is too much for one request.
    """
    if len(prompts) * n > MOST_CHOICES:
        raise errors.InvalidRequest(
            f"{len(prompts)} prompts times {n} answers are more than {MOST_CHOICES}; "
            "send several requests",
            param="n" if n > 1 else "prompt",
        )
    return [_numbered(prompt, i, defaults.seed) for prompt in prompts for i in range(n)]


def _numbered(prompt: Generate, i: int, default_seed: int | None) -> Generate:
    seed = default_seed if prompt.sampling.seed is None else prompt.sampling.seed
    if not i or seed is None:
        return prompt
    seed = (seed + i + 2**63) % 2**64 - 2**63
    return msgspec.structs.replace(
        prompt, sampling=msgspec.structs.replace(prompt.sampling, seed=seed)
    )
