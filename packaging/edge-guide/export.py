"""Write trained weights, tokenizer and chat template as one Q8_0 GGUF."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from model import Shape
from render import TEMPLATE_PATH
from tokenizer import CONTROL, VISIBLE
from tokenizers import Tokenizer

NAMES = {
    "attn_norm.weight": "attn_norm.weight",
    "q.weight": "attn_q.weight",
    "q.bias": "attn_q.bias",
    "k.weight": "attn_k.weight",
    "k.bias": "attn_k.bias",
    "v.weight": "attn_v.weight",
    "v.bias": "attn_v.bias",
    "o.weight": "attn_output.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "gate.weight": "ffn_gate.weight",
    "up.weight": "ffn_up.weight",
    "down.weight": "ffn_down.weight",
}


def gguf_name(name: str) -> str:
    """Our parameter name → llama.cpp's tensor name."""
    if name == "embed.weight":
        return "token_embd.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{NAMES[rest]}"


def write(path: Path, shape: Shape, weights: dict[str, torch.Tensor], tokenizer: Tokenizer) -> None:
    """Matrices as Q8_0, norms and biases as F32. The head is tied to the embedding."""
    out = gguf.GGUFWriter(path, "qwen2")
    out.add_name("edge-guide")
    out.add_description("The built-in guide of edged: answers questions about the appliance.")
    out.add_license("MIT")
    out.add_size_label(f"{sum(w.numel() for w in weights.values()) / 1e6:.1f}M")
    out.add_languages(["en", "zh"])
    out.add_context_length(shape.context)
    out.add_embedding_length(shape.width)
    out.add_block_count(shape.layers)
    out.add_feed_forward_length(shape.ffn)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.kv_heads)
    out.add_rope_freq_base(shape.rope_base)
    out.add_layer_norm_rms_eps(shape.norm_eps)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(out, tokenizer)
    for name, weight in weights.items():
        data = weight.detach().float().numpy()
        if data.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            out.add_tensor(gguf_name(name), gguf.quantize(data, kind), raw_dtype=kind)
        else:
            out.add_tensor(gguf_name(name), data.astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _add_tokenizer(out: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    tokens = [tokenizer.id_to_token(i) for i in range(size)]
    kinds = [gguf.TokenType.NORMAL] * size
    for text in CONTROL:
        kinds[tokenizer.token_to_id(text)] = gguf.TokenType.CONTROL
    for text in VISIBLE:
        kinds[tokenizer.token_to_id(text)] = gguf.TokenType.USER_DEFINED
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list(tokens)
    out.add_token_types(kinds)
    out.add_token_merges([" ".join(merge) for merge in merges])
    out.add_bos_token_id(tokenizer.token_to_id("<|endoftext|>"))
    out.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    out.add_pad_token_id(tokenizer.token_to_id("<|endoftext|>"))
    out.add_add_bos_token(False)
    out.add_chat_template(TEMPLATE_PATH.read_text(encoding="utf-8"))
