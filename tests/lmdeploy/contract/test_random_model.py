"""The model of `edged setup-cuda`'s trial and of `make test-gpu` is one: transformers runs it."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from edged.plan import turbomind
from edged.store.safetensors import read_folder
from edged.worker.lmdeploy import random_model
from edged.worker.lmdeploy.vocabulary import Vocab


def test_it_is_a_model_that_turbomind_runs(tmp_path: Path) -> None:
    folder = random_model.write(tmp_path / "m")
    weights = read_folder(folder)
    assert weights.chat_template
    for kv_bits in (0, 4, 8):
        turbomind.check(weights.config, capability=(7, 0), kv_bits=kv_bits)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = Vocab(folder, frozenset()).tokenize([("hello", False)], wrap=True)
    logits = model(torch.tensor([tokens])).logits
    assert logits.shape == (
        1,
        len(tokens),
        json.loads((folder / "config.json").read_text())["vocab_size"],
    )
    assert torch.isfinite(logits).all()
    assert logits[0, 0].std() > 0


def test_same_seed_same_model(tmp_path: Path) -> None:
    files = [
        (random_model.write(tmp_path / name, seed) / "model.safetensors").read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert files[0] == files[1] != files[2]
