"""The benchmark's model: random weights in the shape of Qwen2.5-0.5B, quantised as its files are.

Speed depends on shapes and types, not on what the weights say.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.models import vocabulary
from tests.models.cache import UnavailableError, build_once
from tests.models.weights import Tensor, bias, embedding, matrix, norm, write_gguf

VERSION = 2
N_LAYERS = 24
N_EMBD = 896
N_HEADS = 14
N_KV_HEADS = 2
N_FF = 4864
N_KV_EMBD = N_EMBD // N_HEADS * N_KV_HEADS
LOGIT_GAIN = 4.0
SHARPNESS = 2.0  # of attention; keeps random text from repeating one token
QUANTISE_LIMIT_S = 900


def bench_model() -> Path:
    """Return the Q4_K_M GGUF (about 400 MB), built in a minute or two on first use."""
    return build_once(f"qwen2.5-0.5b-random-q4_k_m.v{VERSION}.gguf", _build)


def _build(path: Path) -> None:
    whole = path.with_name(f"{path.name}.f16")
    try:
        _write_f16(whole)
        _quantise(whole, path)
    finally:
        whole.unlink(missing_ok=True)


def _write_f16(path: Path) -> None:
    words = vocabulary.qwen2()
    write_gguf(
        path,
        arch="qwen2",
        name="Qwen2.5-0.5B-shaped, random weights",
        settings={
            "block_count": N_LAYERS,
            "context_length": 32768,
            "embedding_length": N_EMBD,
            "feed_forward_length": N_FF,
            "attention.head_count": N_HEADS,
            "attention.head_count_kv": N_KV_HEADS,
            "rope.freq_base": 1e6,
            "attention.layer_norm_rms_epsilon": 1e-6,
        },
        vocabulary=words,
        tensors=_tensors(words),
        matrix_type=np.float16,
    )


def _tensors(words: vocabulary.Vocabulary) -> Iterator[Tensor]:
    yield embedding(words, N_EMBD)
    yield norm("output_norm", N_EMBD, LOGIT_GAIN)
    for layer in range(N_LAYERS):
        at = f"blk.{layer}"
        yield norm(f"{at}.attn_norm", N_EMBD)
        for name, size in (("q", N_EMBD), ("k", N_KV_EMBD), ("v", N_KV_EMBD)):
            yield matrix(f"{at}.attn_{name}", size, N_EMBD, 1.0 if name == "v" else SHARPNESS)
            yield bias(f"{at}.attn_{name}", size)
        yield matrix(f"{at}.attn_output", N_EMBD, N_EMBD)
        yield norm(f"{at}.ffn_norm", N_EMBD)
        yield matrix(f"{at}.ffn_gate", N_FF, N_EMBD)
        yield matrix(f"{at}.ffn_up", N_FF, N_EMBD)
        yield matrix(f"{at}.ffn_down", N_EMBD, N_FF)


def _quantise(source: Path, path: Path) -> None:
    program = Path(__file__).with_name("quantise.py")
    command = [sys.executable, str(program), str(source), str(path)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=QUANTISE_LIMIT_S
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [""])[-1]
        raise UnavailableError(f"the quantiser of llama-cpp-python failed: {said}")
