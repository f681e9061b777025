"""A small model that guesses for another: which go together, and what the plan makes of it."""

import os
from pathlib import Path
from typing import Any

import pytest

from edged.config import LlamaCppOptions, Source
from tests.unit.gguf_bytes import MODEL, TENSORS, gguf
from tests.unit.test_plan import folder, one, refusal

__all__ = ["folder"]


SHORT = [("token_embd.weight", (64, 2), 0), *TENSORS[1:]]
RECURRENT = [*TENSORS, ("blk.1.ssm_a", (16, 128), 0)]


def write(
    folder: Path, metadata: dict[str, object], tensors: list[Any] = TENSORS
) -> LlamaCppOptions:
    (folder / "small.gguf").write_bytes(gguf(metadata, tensors))
    return LlamaCppOptions(draft=Source("file", "small.gguf"))


def test_draft_is_in_the_launch_and_its_memory_is_counted(folder: Path) -> None:
    plain, drafted = one(folder), one(folder, llamacpp=write(folder, MODEL))
    assert drafted.launch
    assert drafted.launch.llamacpp
    assert drafted.launch.llamacpp.draft == str(folder / "small.gguf")
    assert drafted.memory
    assert plain.memory
    assert drafted.memory.weights_bytes == 2 * plain.memory.weights_bytes
    assert drafted.memory.kv_bytes == 2 * plain.memory.kv_bytes
    assert drafted.memory.process_bytes == plain.memory.process_bytes


def test_changed_draft_needs_a_new_worker(folder: Path) -> None:
    options = write(folder, MODEL)
    before = one(folder, llamacpp=options)
    os.utime(folder / "small.gguf", (1, 1))
    assert one(folder, llamacpp=options).launch != before.launch


@pytest.mark.parametrize(
    ("metadata", "tensors", "said"),
    [
        (MODEL | {"tokenizer.ggml.tokens": ["a", "b"]}, SHORT, "another vocabulary: 2 tokens"),
        (MODEL, RECURRENT, "recurrent layers"),
        (MODEL | {"general.architecture": "clip", "general.type": "mmproj"}, TENSORS, "projector"),
    ],
)
def test_draft_that_does_not_fit_is_refused(
    folder: Path, metadata: dict[str, object], tensors: list[Any], said: str
) -> None:
    assert said in refusal(folder, llamacpp=write(folder, metadata, tensors))


def test_speculation_may_be_switched_off(folder: Path) -> None:
    found = one(folder, llamacpp=LlamaCppOptions(speculation="off"))
    assert found.launch
    assert found.launch.llamacpp
    assert not found.launch.llamacpp.speculation
