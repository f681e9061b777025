"""Unpack edge-guide.gguf into a Hugging Face folder with the same weights, for LMDeploy.

The matrices are the GGUF's Q8_0 values, so both files answer alike up to rounding.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from export import NAMES
from safetensors.numpy import save_file
from tokenizer import QWEN2_SPLIT
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

HF_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name: str) -> str:
    """llama.cpp's tensor name → transformers' Qwen2 name."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{HF_NAMES[part]}.{kind}"


def _field(reader: gguf.GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        message = f"{name} is missing"
        raise KeyError(message)
    return field.contents()


def _config(reader: gguf.GGUFReader) -> dict[str, Any]:
    heads = _field(reader, "qwen2.attention.head_count")
    eos = _field(reader, "tokenizer.ggml.eos_token_id")
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": _field(reader, "qwen2.embedding_length"),
        "intermediate_size": _field(reader, "qwen2.feed_forward_length"),
        "num_hidden_layers": _field(reader, "qwen2.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _field(reader, "qwen2.attention.head_count_kv"),
        "max_position_embeddings": _field(reader, "qwen2.context_length"),
        "rms_norm_eps": float(f"{_field(reader, 'qwen2.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": _field(reader, "qwen2.rope.freq_base"),
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": eos,
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float16",
    }


def _tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    tokens = _field(reader, "tokenizer.ggml.tokens")
    kinds = _field(reader, "tokenizer.ggml.token_type")
    normal = gguf.TokenType.NORMAL
    vocab = {t: i for i, (t, k) in enumerate(zip(tokens, kinds, strict=True)) if k == normal}
    merges = [tuple(m.split(" ")) for m in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):  # in order of their ids
        added = AddedToken(token, normalized=False)
        if kind == gguf.TokenType.CONTROL:
            tokenizer.add_special_tokens([added])
        elif kind == gguf.TokenType.USER_DEFINED:
            tokenizer.add_tokens([added])
    return tokenizer


def convert(source: Path, folder: Path) -> None:
    """Write config, generation config, tokenizer and weights into `folder`."""
    reader = gguf.GGUFReader(source)
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(reader)
    weights = {}
    for tensor in reader.tensors:
        name = hf_name(tensor.name)
        data = gguf.dequantize(tensor.data, tensor.tensor_type)
        weights[name] = np.ascontiguousarray(data.astype(np.float16))
    assert len(weights) == 2 + config["num_hidden_layers"] * len(NAMES)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(reader).save(str(folder / "tokenizer.json"))
    generation = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "chat_template": _field(reader, "tokenizer.chat_template"),
    }
    for name, content in {
        "config.json": config,
        "generation_config.json": {**generation, "do_sample": False},
        "tokenizer_config.json": tokens,
    }.items():
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Command line: to_safetensors.py GGUF FOLDER."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    convert(args.gguf, args.folder)


if __name__ == "__main__":
    main()
