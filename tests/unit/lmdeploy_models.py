"""Folders of safetensors as models have them: real config.json and sizes, and no weights."""

import json
from pathlib import Path
from typing import Any

LLAMA: dict[str, Any] = {  # Llama 3.1 8B
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
QWEN: dict[str, Any] = {  # Qwen2.5 7B
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16",
    "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064,
    "max_position_embeddings": 32768, "sliding_window": 131072, "use_sliding_window": False,
    "tie_word_embeddings": False,
}  # fmt: skip
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
QWEN3: dict[str, Any] = QWEN | {  # Qwen3 8B
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936,
    "max_position_embeddings": 40960,
}  # fmt: skip
MOE: dict[str, Any] = QWEN3 | {  # Qwen3 30B A3B
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "intermediate_size": 6144,
    "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
}  # fmt: skip
VL: dict[str, Any] = QWEN | {  # Qwen2.5 VL 7B
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
    "vision_config": {"hidden_size": 1280, "depth": 32}, "max_position_embeddings": 128000,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
    "text_config": {
        "hidden_size": 3840, "num_hidden_layers": 48, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "intermediate_size": 15360,
        "sliding_window": 1024, "vocab_size": 262208, "max_position_embeddings": 131072,
    },
}  # fmt: skip

#: name → config.json, bytes of weights, bytes of those for images
MODELS: dict[str, tuple[dict[str, Any], int, int]] = {
    "fp16": (LLAMA, 16_060_522_496, 0),
    "awq": (QWEN | {"quantization_config": AWQ}, 5_570_000_000, 0),
    "gptq": (QWEN | {"quantization_config": GPTQ}, 5_580_000_000, 0),
    "act-order": (QWEN | {"quantization_config": GPTQ | {"desc_act": True}}, 5_580_000_000, 0),
    "fp8": (QWEN3 | {"quantization_config": FP8}, 9_450_000_000, 0),
    "vl": (VL, 16_580_000_000, 1_350_000_000),
    "moe": (MOE, 61_060_000_000, 0),
    "gemma": (GEMMA, 24_400_000_000, 800_000_000),
}


def folder_of(path: Path, config: dict[str, Any], n_bytes: int, vision_bytes: int = 0) -> Path:
    """Write a folder whose weights are a hole in a file of the right size."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "visual.weight": {
                "dtype": "BF16", "shape": [vision_bytes // 2], "data_offsets": [0, vision_bytes],
            },
            "model.weight": {
                "dtype": "BF16",
                "shape": [(n_bytes - vision_bytes) // 2],
                "data_offsets": [vision_bytes, n_bytes],
            },
        }
    ).encode()  # fmt: skip
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + n_bytes)
    return path


def model(path: Path, name: str, **changes: Any) -> Path:
    """Write one of MODELS, with changes to its config.json."""
    config, n_bytes, vision_bytes = MODELS[name]
    return folder_of(path, config | changes, n_bytes, vision_bytes)
