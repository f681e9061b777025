"""Tiny random models, one for each architecture trait that an engine must treat in its own way."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from tests.models import vocabulary
from tests.models.cache import build_once
from tests.models.states import (
    delta,
    delta_settings,
    mamba,
    mamba2,
    mamba_settings,
    rwkv,
    rwkv_settings,
)
from tests.models.weights import Setting, Tensor, bias, embedding, matrix, norm, write_gguf

Trait = Literal[
    "plain",
    "untied",
    "qwen2",
    "swa",
    "sinks",
    "moe",
    "mla",
    "mrope",
    "recurrent",
    "rwkv",
    "hybrid",
    "hybrid-swa",
    "hybrid-ssm",
    "hybrid-delta",
    "embedding",
    "embedding-cls",
    "embedding-last",
    "rerank",
    "rerank-last",
]
"""plain: llama; untied: with an output matrix of its own; qwen2: with biases; swa: gemma3, every
second layer sees ``WINDOW`` tokens; sinks: gpt-oss, the same with sinks and experts; moe: qwen3moe;
mla: deepseek2, whose keys and values are compressed; mrope: qwen2vl, with positions in three
dimensions; recurrent: mamba; rwkv: RWKV-7; hybrid: lfm2, two layers of attention and two of short
convolution; hybrid-swa: the same with a window; hybrid-ssm: granite with mamba2; hybrid-delta:
qwen3.5; embedding (mean), embedding-cls, rerank: bert on WordPiece; embedding-last, rerank-last:
qwen3, as Qwen3-Embedding and Qwen3-Reranker."""
TRAITS: tuple[Trait, ...] = get_args(Trait)
WRITING: tuple[Trait, ...] = tuple(t for t in TRAITS if not t.startswith(("embedding", "rerank")))

VERSION = 3
N_LAYERS = 4
N_EMBD = 64
N_HEADS = 2
N_HEAD = N_EMBD // N_HEADS
N_KV_EMBD = N_HEAD
N_FF = 192
N_EXPERTS = 4
WINDOW = 32
CONTEXT = 4096
LORA = 32  # width of compressed queries, keys and values
SHARPNESS = 2.0  # attention that picks some tokens keeps random text from repeating itself

ARCH: dict[Trait, str] = {
    "plain": "llama",
    "untied": "llama",
    "qwen2": "qwen2",
    "swa": "gemma3",
    "sinks": "gpt-oss",
    "moe": "qwen3moe",
    "mla": "deepseek2",
    "mrope": "qwen2vl",
    "recurrent": "mamba",
    "rwkv": "rwkv7",
    "hybrid": "lfm2",
    "hybrid-swa": "lfm2",
    "hybrid-ssm": "granitehybrid",
    "hybrid-delta": "qwen35",
    "embedding": "bert",
    "embedding-cls": "bert",
    "embedding-last": "qwen3",
    "rerank": "bert",
    "rerank-last": "qwen3",
}

RERANK_TEMPLATE = (
    "<|im_start|>system\nJudge.<|im_end|>\n<|im_start|>user\n<Query>: {query}\n"
    "<Document>: {document}<|im_end|>\n<|im_start|>assistant\n"
)

Words = vocabulary.Vocabulary | vocabulary.WordPiece


def tiny(trait: Trait) -> Path:
    """Return a GGUF file of 2-3 MB with random float32 weights and a small real vocabulary."""
    words = _words(trait)
    return build_once(
        f"tiny-{trait}.v{VERSION}-{words.digest()}.gguf", lambda path: write_tiny(path, trait)
    )


def _words(trait: Trait) -> Words:
    return vocabulary.wordpiece() if ARCH[trait] == "bert" else vocabulary.small()


def write_tiny(path: Path, trait: Trait, n_extra_rows: int = 0, words: Words | None = None) -> None:
    """Write the model to ``path``; ``n_extra_rows`` spoils it with embeddings of no token.

    ``words`` stands instead of the small vocabulary, with a chat template of its own for example.
    """
    words = words or _words(trait)
    arch = ARCH[trait]
    tensors = list(_tensors(trait, words))
    if n_extra_rows:
        rows, size = tensors[0].shape
        tensors[0] = Tensor(tensors[0].name, (rows + n_extra_rows, size), std=tensors[0].std)
    write_gguf(
        path,
        arch=arch,
        name=f"tiny {trait}",
        settings=_settings(trait),
        vocabulary=words,
        tensors=tensors,
        seed=int(hashlib.sha256(trait.encode()).hexdigest()[:8], 16),
    )


def _settings(trait: Trait) -> dict[str, Setting]:
    attention: dict[str, Setting] = {
        "attention.head_count": N_HEADS,
        "attention.head_count_kv": 1,
        "attention.key_length": N_HEAD,
        "attention.value_length": N_HEAD,
        "rope.freq_base": 10000.0,
    }
    experts: dict[str, Setting] = {
        "expert_count": N_EXPERTS,
        "expert_used_count": 2,
        "expert_feed_forward_length": N_FF // 2,
    }
    every_second: dict[str, Setting] = {
        "attention.head_count_kv": [n % 2 for n in range(N_LAYERS)],
    }
    hybrid = attention | every_second | {"shortconv.l_cache": 3}
    own: dict[Trait, dict[str, Setting]] = {
        "plain": attention | {"rope.dimension_count": N_HEAD},
        "untied": attention | {"rope.dimension_count": N_HEAD},
        "qwen2": attention,
        "mrope": attention | {"rope.dimension_sections": [4, 6, 6, 0]},
        "swa": attention
        | {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 2},
        "sinks": attention | experts | {"attention.sliding_window": WINDOW},
        "moe": attention | experts,
        "mla": attention
        | experts
        | {
            "attention.q_lora_rank": LORA,
            "attention.kv_lora_rank": LORA,
            "attention.key_length": LORA + N_HEAD // 2,  # as they are kept: compressed
            "attention.value_length": LORA,
            "attention.key_length_mla": N_HEAD,
            "attention.value_length_mla": N_HEAD,
            "rope.dimension_count": N_HEAD // 2,
            "leading_dense_block_count": 2,
            "expert_shared_count": 1,
        },
        "recurrent": {"attention.head_count": 0} | mamba_settings(N_EMBD),
        "rwkv": rwkv_settings(),
        "hybrid": hybrid,
        "hybrid-swa": hybrid | {"attention.sliding_window": WINDOW},
        "hybrid-ssm": attention
        | every_second
        | mamba_settings(N_EMBD)
        | {"ssm.group_count": 1, "rope.dimension_count": N_HEAD},
        "hybrid-delta": attention
        | delta_settings()
        | {
            "full_attention_interval": 2,
            "rope.dimension_count": N_HEAD,
            "rope.dimension_sections": [4, 6, 6, 0],
        },
        "embedding": _bert_settings("mean"),
        "embedding-cls": _bert_settings("cls"),
        "embedding-last": attention | {"pooling_type": 3, "tokenizer.ggml.add_eos_token": True},
        "rerank": _bert_settings("rank"),
        "rerank-last": attention
        | {
            "pooling_type": 4,
            "classifier.output_labels": ["yes", "no"],
            "tokenizer.chat_template.rerank": RERANK_TEMPLATE,
        },
    }
    return {
        "block_count": N_LAYERS,
        "context_length": CONTEXT,
        "embedding_length": N_EMBD,
        "feed_forward_length": 0 if trait == "recurrent" else N_FF,
        "attention.layer_norm_rms_epsilon": 1e-6,
    } | own[trait]


def _bert_settings(pooling: Literal["mean", "cls", "rank"]) -> dict[str, Setting]:
    return {
        "context_length": 512,
        "attention.head_count": N_HEADS,
        "attention.layer_norm_epsilon": 1e-6,
        "attention.causal": False,
        "pooling_type": {"mean": 1, "cls": 2, "rank": 4}[pooling],
        "tokenizer.ggml.token_type_count": 2,
    }


def _tensors(trait: Trait, words: Words) -> Iterator[Tensor]:
    yield embedding(words, N_EMBD)
    if ARCH[trait] == "bert":
        yield from _bert(rerank=trait == "rerank")
        return
    if trait in ("untied", "sinks", "rwkv"):
        yield embedding(words, N_EMBD, name="output")
    last = "token_embd_norm" if ARCH[trait] == "lfm2" else "output_norm"
    yield norm(last, N_EMBD, 16.0)
    if trait == "rerank-last":
        yield matrix("cls.output", 2, N_EMBD, gain=0.1)
    if trait == "rwkv":
        yield bias(last, N_EMBD)
        yield from _layer_norm("token_embd_norm")
    for layer in range(N_LAYERS):
        yield from _layer(f"blk.{layer}", layer, trait)


def _layer(at: str, layer: int, trait: Trait) -> Iterator[Tensor]:
    if trait == "rwkv":
        yield from rwkv(at, N_EMBD, N_FF)
        return
    yield norm(f"{at}.attn_norm", N_EMBD)
    if trait == "recurrent":
        yield from mamba(at, N_EMBD)
        return
    if trait.startswith("hybrid") and layer % 2 == 0:
        yield from _state(at, trait)
    elif trait == "mla":
        yield from _compressed_attention(at)
    else:
        yield from _attention(at, trait)
    if trait in ("sinks", "hybrid-delta"):  # their norm before the feed-forward part
        yield norm(f"{at}.post_attention_norm", N_EMBD)
    else:
        yield norm(f"{at}.ffn_norm", N_EMBD)
    if trait in ("moe", "sinks") or (trait == "mla" and layer >= N_LAYERS // 2):
        yield from _experts(at, trait)
    else:
        yield from _feed_forward(at)
    if trait == "swa":
        yield norm(f"{at}.post_attention_norm", N_EMBD)
        yield norm(f"{at}.post_ffw_norm", N_EMBD)


def _state(at: str, trait: Trait) -> Iterator[Tensor]:
    if trait == "hybrid-ssm":
        yield from mamba2(at, N_EMBD)
    elif trait == "hybrid-delta":
        yield from delta(at, N_EMBD)
    else:
        yield matrix(f"{at}.shortconv.in_proj", 3 * N_EMBD, N_EMBD)
        yield matrix(f"{at}.shortconv.conv", N_EMBD, 3)
        yield matrix(f"{at}.shortconv.out_proj", N_EMBD, N_EMBD)


def _attention(at: str, trait: Trait) -> Iterator[Tensor]:
    normed = trait in ("swa", "moe", "hybrid", "hybrid-swa", "hybrid-delta")
    for name, size in (("q", N_EMBD), ("k", N_KV_EMBD), ("v", N_KV_EMBD)):
        gain = 1.0 if name == "v" else SHARPNESS
        gated = trait == "hybrid-delta" and name == "q"  # a gate beside each query
        yield matrix(f"{at}.attn_{name}", 2 * size if gated else size, N_EMBD, gain)
        if trait in ("qwen2", "mrope", "sinks"):
            yield bias(f"{at}.attn_{name}", size)
        if (normed or ARCH[trait] == "qwen3") and name != "v":
            yield norm(f"{at}.attn_{name}_norm", N_HEAD, SHARPNESS)
    yield matrix(f"{at}.attn_output", N_EMBD, N_EMBD, gain=2.0)
    if trait == "sinks":
        yield bias(f"{at}.attn_output", N_EMBD)
        yield Tensor(f"{at}.attn_sinks.weight", (N_HEADS,), std=1.0)


def _compressed_attention(at: str) -> Iterator[Tensor]:
    rotated = unrotated = N_HEAD // 2
    yield matrix(f"{at}.attn_q_a", LORA, N_EMBD)
    yield norm(f"{at}.attn_q_a_norm", LORA)
    yield matrix(f"{at}.attn_q_b", N_HEADS * N_HEAD, LORA, SHARPNESS)
    yield matrix(f"{at}.attn_kv_a_mqa", LORA + rotated, N_EMBD)
    yield norm(f"{at}.attn_kv_a_norm", LORA)
    for name, n_out, n_in in (("k", LORA, unrotated), ("v", N_HEAD, LORA)):
        shape = (N_HEADS, n_out, n_in)
        yield Tensor(f"{at}.attn_{name}_b.weight", shape, std=SHARPNESS / LORA**0.5)
    yield matrix(f"{at}.attn_output", N_EMBD, N_EMBD, gain=2.0)


def _feed_forward(at: str, suffix: str = "", size: int = N_FF) -> Iterator[Tensor]:
    yield matrix(f"{at}.ffn_gate{suffix}", size, N_EMBD)
    yield matrix(f"{at}.ffn_up{suffix}", size, N_EMBD)
    yield matrix(f"{at}.ffn_down{suffix}", N_EMBD, size, gain=2.0)


def _experts(at: str, trait: Trait) -> Iterator[Tensor]:
    size = N_FF // 2
    yield matrix(f"{at}.ffn_gate_inp", N_EXPERTS, N_EMBD)
    for name, n_out, n_in in (("gate", size, N_EMBD), ("up", size, N_EMBD), ("down", N_EMBD, size)):
        yield Tensor(f"{at}.ffn_{name}_exps.weight", (N_EXPERTS, n_out, n_in), std=1.5 / n_in**0.5)
        if trait == "sinks":
            yield Tensor(f"{at}.ffn_{name}_exps.bias", (N_EXPERTS, n_out), std=0.1)
    if trait == "sinks":
        yield bias(f"{at}.ffn_gate_inp", N_EXPERTS)
    if trait == "mla":
        yield from _feed_forward(at, "_shexp", size)


def _bert(*, rerank: bool) -> Iterator[Tensor]:
    yield Tensor("position_embd.weight", (512, N_EMBD), std=0.01)
    yield Tensor("token_types.weight", (2, N_EMBD), std=0.01)
    yield from _layer_norm("token_embd_norm")
    for layer in range(N_LAYERS):
        at = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield matrix(f"{at}.{name}", N_EMBD, N_EMBD)
            yield bias(f"{at}.{name}", N_EMBD)
        yield from _layer_norm(f"{at}.attn_output_norm")
        yield matrix(f"{at}.ffn_up", N_FF, N_EMBD)
        yield bias(f"{at}.ffn_up", N_FF)
        yield matrix(f"{at}.ffn_down", N_EMBD, N_FF)
        yield bias(f"{at}.ffn_down", N_EMBD)
        yield from _layer_norm(f"{at}.layer_output_norm")
    if rerank:
        yield matrix("cls", N_EMBD, N_EMBD)
        yield bias("cls", N_EMBD)
        yield matrix("cls.output", 1, N_EMBD)
        yield bias("cls.output", 1)


def _layer_norm(name: str) -> Iterator[Tensor]:
    yield norm(name, N_EMBD)
    yield bias(name, N_EMBD, std=0.01)
