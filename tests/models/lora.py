"""Random LoRA adapters for any model file, written by the gguf package."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from edged.store.gguf import read_header, read_tensors
from edged.store.gguf_tensors import TensorInfo

RANK = 4
ALPHA = 8.0
TARGETS = ("attn_q.weight", "attn_v.weight", "attn_output.weight", "ffn_down.weight")


def write_lora(
    path: Path,
    model: Path,
    seed: int,
    *,
    strength: float = 0.5,
    rank: int = RANK,
    targets: tuple[str, ...] = TARGETS,
    metadata: Mapping[str, str | list[int]] | None = None,
) -> Path:
    """Write an adapter for the layers of ``model`` and return its path.

    With ``strength`` 1 its changes are about as large as the outputs that they are added to.
    ``metadata`` overrules or adds entries.
    """
    arch = read_header(model).architecture
    entries: dict[str, str | list[int]] = {
        "general.type": "adapter",
        "adapter.type": "lora",
    } | dict(metadata or {})
    writer = GGUFWriter(path, str(entries.pop("general.architecture", arch)))
    for key, value in entries.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    writer.add_float32("adapter.lora.alpha", ALPHA)
    rng = np.random.default_rng(seed)
    for name, info in read_tensors(model).items():
        if name.endswith(targets):
            a, b = _pair(rng, info, name, rank)
            writer.add_tensor(f"{name}.lora_a", a)
            writer.add_tensor(f"{name}.lora_b", b * np.float32(strength * rank / ALPHA))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _pair(
    rng: np.random.Generator, info: TensorInfo, name: str, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return both matrices in numpy's order, with their experts in front."""
    n_in, n_out, *experts = info.shape
    if name == "token_embd.weight":  # looked up by row: both the other way round
        a = rng.standard_normal((n_out, rank), np.float32)
        b = rng.standard_normal((n_in, rank), np.float32) * np.float32(0.02 / math.sqrt(rank))
        return a, b
    a = rng.standard_normal((*experts, rank, n_in), np.float32) / np.float32(math.sqrt(n_in))
    b = rng.standard_normal((*experts, n_out, rank), np.float32) / np.float32(math.sqrt(rank))
    return a, b
