"""The memory estimate against what llama.cpp itself allocates, read from its own log."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edged.config import LlamaCppOptions
from edged.plan.estimate import cells_of, estimate, residents_of
from edged.protocol import Pooling
from edged.store.gguf import read_header
from edged.worker.llamacpp.library import KV_TYPES
from tests.models import UnavailableError, bench_model, tiny

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

MIB = 1 << 20

# A child of its own: llama.cpp keeps the log callback for ever, and the engine's tests set theirs.
MEASURE = """
import sys
import llama_cpp as lib

def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))

path = sys.argv[1]
cells, batch, sequences, flash, kv_type, pooling, full_window = map(int, sys.argv[2:])
lib.llama_backend_init()
model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
params = lib.llama_context_default_params()
params.n_threads = params.n_threads_batch = 1
before = anonymous()
params.n_ctx, params.n_batch, params.n_ubatch = cells, batch, batch
params.n_seq_max = params.n_outputs_max = sequences
params.kv_unified = True
params.swa_full = bool(full_window)
params.flash_attn_type, params.type_k, params.type_v = flash, kv_type, kv_type
if pooling:
    params.embeddings, params.pooling_type, params.n_outputs_max = True, pooling, 0
context = lib.llama_init_from_model(model, params)
assert context
if pooling:
    tokens = (lib.llama_token * batch)(*[5] * batch)
    assert lib.llama_decode(context, lib.llama_batch_get_one(tokens, batch)) == 0
    print("taken buffer size = %f MiB" % ((anonymous() - before) / 1024), file=sys.stderr)
"""


def measured(path: Path, *settings: int) -> dict[str, float]:
    """Return MiB of each kind of buffer."""
    command = [sys.executable, "-c", MEASURE, str(path), *(str(int(s)) for s in settings)]
    log = subprocess.run(command, check=True, capture_output=True, text=True, timeout=110).stderr
    kinds = ("KV", "RS", "compute", "output", "taken")
    sizes = {kind: re.findall(rf"{kind}\s+buffer size =\s+([\d.]+) MiB", log) for kind in kinds}
    return {kind: sum(map(float, found)) for kind, found in sizes.items()}


def path_of(name: str) -> Path:
    try:
        return bench_model() if name == "bench" else tiny(name)  # type: ignore[arg-type]
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("name", "context", "parallel", "options"),
    [
        ("plain", 2048, 4, {}),
        ("plain", 8192, 4, {}),
        ("plain", 2000, 1, {"batch": 128}),
        ("plain", 2048, 4, {"kv_type": "q8_0"}),
        ("plain", 2048, 4, {"flash_attention": "off"}),
        ("plain", 2048, 4, {"kv_type": "f32"}),
        ("plain", 2048, 4, {"kv_type": "bf16"}),
        ("plain", 2048, 4, {"kv_type": "q5_1"}),
        ("plain", 2048, 4, {"kv_type": "q5_0"}),
        ("plain", 2048, 4, {"kv_type": "q4_1"}),
        ("plain", 2048, 4, {"kv_type": "q4_0"}),
        ("swa", 2048, 4, {}),
        ("swa", 2048, 4, {"full_window": False}),
        ("swa", 2048, 4, {"full_window": False, "kv_type": "q8_0"}),
        ("hybrid", 2048, 4, {"kv_type": "q8_0"}),
        ("moe", 2048, 4, {}),
        ("recurrent", 2048, 4, {}),
        ("hybrid", 2048, 16, {}),
        ("hybrid-ssm", 2048, 4, {}),
        ("hybrid-delta", 2048, 4, {}),
        ("bench", 2048, 4, {}),
        ("bench", 2048, 16, {"batch": 256}),
        ("bench", 2048, 4, {"flash_attention": "off"}),
    ],
)
def test_estimate_is_what_llamacpp_allocates(
    name: str, context: int, parallel: int, options: dict[str, Any]
) -> None:
    header = read_header(path_of(name))
    found = LlamaCppOptions(**options)
    said = estimate(header, context=context, parallel=parallel, options=found)
    sequences = parallel + residents_of(header, parallel, found)
    flash = {"auto": -1, "off": 0}[found.flash_attention]
    kv_type = KV_TYPES[found.kv_type]
    cells = context * parallel
    full_window = found.full_window is not False
    real = measured(path_of(name), cells, found.batch, sequences, flash, kv_type, 0, full_window)
    assert real["compute"] > 0
    assert said.kv_bytes / MIB == pytest.approx(real["KV"] + real["RS"], rel=0.01, abs=0.02)
    scratch = real["compute"] + real["output"]
    assert said.compute_bytes / MIB == pytest.approx(scratch, rel=0.15, abs=1.5)


@pytest.mark.parametrize(
    ("name", "pooling", "context", "options"),
    [
        ("embedding", "mean", 512, {}),
        ("embedding", "mean", 512, {"flash_attention": "off"}),
        ("embedding", "mean", 100, {"batch": 256}),
        ("embedding-cls", "cls", 512, {"batch": 64}),
        ("rerank", "rank", 512, {}),
        ("embedding-last", "last", 4096, {}),
        ("embedding-last", "mean", 4096, {}),
        ("embedding-last", "last", 4096, {"kv_type": "f32"}),
        ("rerank-last", "rank", 2048, {"batch": 1024}),
        ("bench", "last", 4096, {}),
        ("bench", "mean", 1024, {}),
        ("recurrent", "last", 2048, {}),
    ],
)
def test_estimate_of_vectors_is_what_llamacpp_allocates(
    name: str, pooling: Pooling, context: int, options: dict[str, Any]
) -> None:
    header = read_header(path_of(name))
    found = LlamaCppOptions(**options)
    said = estimate(header, context=context, parallel=32, options=found, pooling=pooling)
    cells = cells_of(context, 32, found, pooling)
    whole = not header.is_causal or pooling in ("mean", "cls")
    batch = cells if whole else found.batch
    sequences = 4 if header.recurrent_layers else 64
    flash = {"auto": -1, "off": 0}[found.flash_attention]
    kv_type = KV_TYPES[found.kv_type]
    number = {"mean": 1, "cls": 2, "last": 3, "rank": 4}[pooling]
    real = measured(path_of(name), cells, batch, sequences, flash, kv_type, number, 1)
    assert real["compute"] > 0
    assert said.kv_bytes / MIB == pytest.approx(real["KV"] + real["RS"], rel=0.01, abs=0.02)
    # llama.cpp's log does not tell how its output buffer grows with the first batch
    taken = real["taken"] - real["KV"] - real["RS"]
    assert said.compute_bytes / MIB == pytest.approx(taken, rel=0.25, abs=4)
