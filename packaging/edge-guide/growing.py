"""Weights of an earlier stage → a network that may have more layers, and answers the same.

A new block adds nothing to the stream until training has given its outputs a weight, so what was
learnt stays learnt, and the room that it brings is used from the first step on.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
from export import gguf_name
from model import Guide

SILENT = ("o.weight", "down.weight")  # a block whose outputs are zero passes the stream on


def load(model: Guide, trained: Path) -> None:
    """Fill `model` from `trained`: float weights (.pt) if they are there, else its GGUF."""
    weights = trained.with_suffix(".pt")
    state = torch.load(weights) if weights.exists() else _from_gguf(model, trained)
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    new = model.shape.layers - layers
    if new:
        state = _grown(model, state, layers, new)
    model.load_state_dict(state)


def _grown(
    model: Guide, state: dict[str, torch.Tensor], layers: int, new: int
) -> dict[str, torch.Tensor]:
    """Spread `new` silent blocks evenly among `layers` trained ones, the last of them on top."""
    fresh = model.state_dict()
    grown = {name: value for name, value in state.items() if not name.startswith("blocks.")}
    every = layers // new  # trained blocks below each new one
    for i in range(model.shape.layers):
        is_new = i % (every + 1) == every and i // (every + 1) < new
        old = i - min(i // (every + 1), new)
        for name in [n for n in fresh if n.startswith(f"blocks.{i}.")]:
            part = name.split(".", 2)[2]
            if not is_new:
                grown[name] = state[f"blocks.{old}.{part}"]
            elif part in SILENT:
                grown[name] = torch.zeros_like(fresh[name])
            else:
                grown[name] = fresh[name]
    return grown


def _from_gguf(model: Guide, path: Path) -> dict[str, torch.Tensor]:
    """The values of a Q8_0 file, for going on where the float weights are gone."""
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    state = {}
    for name in model.state_dict():
        tensor = tensors.get(gguf_name(name))
        if tensor is not None:
            data = gguf.dequantize(tensor.data, tensor.tensor_type)
            state[name] = torch.from_numpy(np.array(data, dtype=np.float32))
    return state
