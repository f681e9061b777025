"""How a context is kept: full windows by memory, KV types that fit the heads."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.config import LlamaCppOptions
from tests.unit.gguf_bytes import MODEL, gguf
from tests.unit.test_plan import box, one, refusal

GEMMA = {key.replace("llama.", "gemma3."): value for key, value in MODEL.items()} | {
    "general.architecture": "gemma3",
    "gemma3.attention.sliding_window": 512,
}
LAYERS = [("token_embd.weight", (64, 4), 0)] + [
    (f"blk.{n}.attn_k.weight", (64, 32), 0) for n in range(6)
]


def write(folder: Path, **more: int) -> None:
    head = {f"gemma3.{key}": value for key, value in more.items()}
    model = GEMMA | {"gemma3.block_count": 6} | head
    (folder / "a.gguf").write_bytes(gguf(model, LAYERS))


@pytest.mark.parametrize(("said", "full"), [(None, False), (True, True), (False, False)])
def test_full_windows_are_had_where_they_are_cheap_or_asked_for(
    tmp_path: Path, said: bool | None, full: bool
) -> None:
    write(
        tmp_path,
        **{"attention.key_length": 256, "attention.value_length": 256, "context_length": 1 << 17},
    )
    options = LlamaCppOptions(full_window=said)
    dear = one(tmp_path, box(), context=1 << 15, parallel=8, llamacpp=options)
    assert dear.launch is not None
    assert dear.launch.llamacpp is not None
    assert dear.launch.llamacpp.full_window == full
    assert any("full_window is off" in reason for reason in dear.reasons) == (said is None)
    cheap = one(tmp_path, box(), context=1024, llamacpp=options)
    assert cheap.launch is not None
    assert cheap.launch.llamacpp is not None
    assert cheap.launch.llamacpp.full_window == (said is not False)


def test_kv_type_that_does_not_divide_the_heads_is_refused(tmp_path: Path) -> None:
    write(tmp_path, **{"attention.key_length": 80})
    assert "heads of this model have 80" in refusal(
        tmp_path, llamacpp=LlamaCppOptions(kv_type="q8_0")
    )
    assert one(tmp_path, llamacpp=LlamaCppOptions(kv_type="bf16")).launch is not None
