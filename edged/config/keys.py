"""Which keys may stand in which table of `models.toml`, and how each value is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from edged.config.sources import source
from edged.config.values import (
    BadValueError,
    Reader,
    absolute,
    boolean,
    choice,
    duration_or_never,
    duration_or_zero,
    folder,
    host,
    listen,
    many,
    network,
    number,
    origin,
    secret,
    size,
    size_or_zero,
    text,
    tls_listen,
    upstream,
    whole,
)

Auth = Literal["auto", "keys", "none"]
Backend = Literal["auto", "llamacpp", "lmdeploy", "upstream"]
FlashAttention = Literal["auto", "on", "off"]
KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
LoadWhen = Literal["on-demand", "startup"]
ModelKind = Literal["auto", "chat", "embeddings", "rerank"]
OutputFormat = Literal[  # "auto" and the rows of edged/worker/output/formats.py
    "auto",
    "apriel",
    "command-r",
    "command-r7b",
    "deepseek-v3",
    "deepseek-v3.1",
    "firefunction",
    "functionary-v3.1",
    "functionary-v3.2",
    "generic",
    "glm-4.5",
    "gpt-oss",
    "granite",
    "hermes",
    "kimi-k2",
    "lfm2",
    "llama3",
    "minicpm",
    "minicpm3",
    "minimax-m2",
    "mistral",
    "mistral-call-id",
    "mistral-list",
    "nemotron",
    "phi-4",
    "qwen3-coder",
    "seed-oss",
]
Pooling = Literal["mean", "cls", "last"]
QuantPolicy = Literal[0, 4, 8]
Require = Literal["any", "gpu"]
Speculation = Literal["auto", "off"]
TlsMode = Literal["off", "self-signed", "files"]

Keys = Mapping[str, "Reader | Keys | Entries"]


class Entries(NamedTuple):
    """A table of entries by name, each with these keys; a value alone is that of key `sole`."""

    keys: Keys
    sole: str


def _gpus(value: Any) -> Any:
    if isinstance(value, list):
        return many(whole(0, 255), "GPU numbers", at_least=1)(value)
    try:
        return choice(Literal["auto", "none"])(value)
    except BadValueError as error:
        raise BadValueError(
            str(error).replace('"none",', '"none" or a list such as [0, 1],')
        ) from None


def _logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise BadValueError('must be a table of token id = bias, such as { "42" = -100 }')
    for token in value:
        if not re.fullmatch(r"\d{1,9}", token, re.ASCII):
            raise BadValueError(f"must have token ids as keys, not {token[:40]!r}")
    return {int(token): number(-100, 100)(bias) for token, bias in value.items()}


def _breakers(value: Any) -> list[str]:
    known = isinstance(value, list) and all(isinstance(each, str) and each for each in value)
    if not known or len(value) > _MOST_BREAKERS:
        raise BadValueError('must be a list of up to 64 texts, such as ["\\n", ":"]')
    return list(value)


_MOST_BREAKERS = 64
_COUNT = 1 << 20  # no box has more of anything that is counted here
_TOKENS = 1 << 24

SERVER: Keys = {
    "listen": many(listen, "addresses", at_least=1),
    "auth": choice(Auth),
    "allow": many(network, "networks"),
    "announce": boolean,
    "hosts": many(host, "host names"),
    "cors": many(origin, "origins"),
    "max_body": size(1 << 10, 1 << 30),
    "media_hosts": many(host, "host names"),
    "responses_keep": duration_or_zero,
    "responses_max": size_or_zero(1 << 20, 1 << 40),
    "prefix_cache_max": size_or_zero(1 << 20, 1 << 50),
    "tls": {
        "mode": choice(TlsMode),
        "listen": many(tls_listen, "addresses", at_least=1),
        "cert": absolute,
        "key": absolute,
    },
}
HARDWARE: Keys = {"reserve_memory": size(0, 1 << 50), "gpus": _gpus}
STORE: Keys = {
    "folder": folder,
    "offline": boolean,
    "max_rate": size(1 << 10, 1 << 40),
    "hf_token": secret,
    "ms_token": secret,
}
ADAPTER: Keys = {
    "gguf": source,
    "scale": number(-100, 100),
    "aliases": many(text, "names"),
}
MODEL: Keys = {
    "gguf": source,
    "safetensors": source,
    "upstream": upstream,
    "aliases": many(text, "names"),
    "backend": choice(Backend),
    "kind": choice(ModelKind),
    "require": choice(Require),
    "load": choice(LoadWhen),
    "pin": boolean,
    "idle_unload": duration_or_never,
    "context": whole(1, _TOKENS),
    "parallel": whole(1, 256),
    "queue": whole(0, _COUNT),
    "output_format": choice(OutputFormat),
    "probe": text,
    "recycle_growth": size_or_zero(1 << 20, 1 << 50),
    "sampling": {
        "temperature": number(0, 2),
        "top_p": number(0, 1),
        "top_k": whole(0, _TOKENS),
        "min_p": number(0, 1),
        "typical_p": number(0, 1),
        "repeat_penalty": number(0.01, 10),
        "presence_penalty": number(-2, 2),
        "frequency_penalty": number(-2, 2),
        "seed": whole(-(1 << 63), (1 << 63) - 1),
        "logit_bias": _logit_bias,
        "ignore_eos": boolean,
        "min_tokens": whole(0, _TOKENS),
        "dry_multiplier": number(0, 100),
        "dry_base": number(1, 100),
        "dry_allowed_length": whole(0, _TOKENS),
        "dry_penalty_last_n": whole(-1, _TOKENS),
        "dry_sequence_breakers": _breakers,
        "xtc_probability": number(0, 1),
        "xtc_threshold": number(0, 1),
    },
    "llamacpp": {
        "threads": whole(1, 1024),
        "threads_batch": whole(1, 1024),
        "gpu_layers": whole(0, 9999),
        "kv_type": choice(KvType),
        "flash_attention": choice(FlashAttention),
        "batch": whole(1, 1 << 16),
        "full_window": boolean,
        "pooling": choice(Pooling),
        "lora": Entries(ADAPTER, "gguf"),
        "speculation": choice(Speculation),
        "draft": source,
        "mmproj": source,
        "prefix_cache": size_or_zero(1 << 20, 1 << 50),
    },
    "lmdeploy": {
        "tp": whole(1, 64),
        "quant_policy": choice(QuantPolicy),
        "cache_max_entry_count": number(0.01, 0.99),
        "pytorch": boolean,
    },
}
TOP: Keys = {
    "server": SERVER,
    "hardware": HARDWARE,
    "store": STORE,
    "defaults": MODEL,
    "models": {},
}
# keys without the unit that the Structs have in their names
FIELDS = {
    "idle_unload": "idle_unload_s",
    "max_body": "max_body_bytes",
    "max_rate": "max_rate_bytes",
    "prefix_cache": "prefix_cache_bytes",
    "prefix_cache_max": "prefix_cache_max_bytes",
    "recycle_growth": "recycle_growth_bytes",
    "reserve_memory": "reserve_memory_bytes",
    "responses_keep": "responses_keep_s",
    "responses_max": "responses_max_bytes",
}


def home(key: str) -> str:
    """Return where a known key belongs, as the end of a sentence that refuses it elsewhere."""
    for table, keys in (("server", SERVER), ("hardware", HARDWARE), ("store", STORE)):
        if key in keys:
            return f" here; it belongs into [{table}]"
    if key in MODEL:
        return " here; it belongs into [defaults] or into a model"
    for part, inner in MODEL.items():
        if isinstance(inner, Mapping) and key in inner:
            return f" here; it belongs into [models.NAME.{part}]"
    return ""
