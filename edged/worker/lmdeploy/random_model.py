"""A model of random weights in Qwen2's shape, with a byte-level vocabulary: some megabytes."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

_END = "<|im_end|>"
_CONTROL = ["<|endoftext|>", "<|im_start|>", _END]
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "float16",
    "vocab_size": 320, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "hidden_act": "silu", "tie_word_embeddings": False, "use_sliding_window": False,
}  # fmt: skip
_SPREAD = 0.05  # of a weight


def write(folder: Path, seed: int = 7) -> Path:
    """Write the folder and return it; the same seed makes the same model."""
    folder.mkdir(parents=True)
    end = _write_vocabulary(folder)
    (folder / "config.json").write_text(json.dumps(_CONFIG | {"eos_token_id": end}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    _write_weights(folder / "model.safetensors", random.Random(seed))  # noqa: S311 - no secret
    return folder


def _write_vocabulary(folder: Path) -> int:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([], trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _END,
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return int(tokenizer.token_to_id(_END))


def _shapes() -> dict[str, list[int]]:
    hidden, wide, head = _CONFIG["hidden_size"], _CONFIG["intermediate_size"], _CONFIG["head_dim"]
    queries = head * _CONFIG["num_attention_heads"]
    keys = head * _CONFIG["num_key_value_heads"]
    words = [_CONFIG["vocab_size"], hidden]
    shapes = {"model.embed_tokens.weight": words, "model.norm.weight": [hidden]}
    for n in range(_CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{n}."
        shapes |= {
            f"{layer}input_layernorm.weight": [hidden],
            f"{layer}post_attention_layernorm.weight": [hidden],
            f"{layer}self_attn.q_proj.weight": [queries, hidden],
            f"{layer}self_attn.q_proj.bias": [queries],
            f"{layer}self_attn.k_proj.weight": [keys, hidden],
            f"{layer}self_attn.k_proj.bias": [keys],
            f"{layer}self_attn.v_proj.weight": [keys, hidden],
            f"{layer}self_attn.v_proj.bias": [keys],
            f"{layer}self_attn.o_proj.weight": [hidden, queries],
            f"{layer}mlp.gate_proj.weight": [wide, hidden],
            f"{layer}mlp.up_proj.weight": [wide, hidden],
            f"{layer}mlp.down_proj.weight": [hidden, wide],
        }
    return shapes | {"lm_head.weight": words}


def _write_weights(path: Path, chance: random.Random) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, shape in _shapes().items():
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        if name.endswith("norm.weight"):
            values = [1.0] * n
        else:
            values = [chance.gauss(0.0, _SPREAD) for _ in range(n)]
        begin = len(data)
        data += struct.pack(f"<{n}e", *values)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, len(data)]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
