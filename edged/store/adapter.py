"""The header of a LoRA adapter: the GGUF file that changes a model, and whether it fits one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from edged.errors import GgufError
from edged.store.gguf import read_any, read_tensors
from edged.store.gguf_tensors import TensorInfo

_PAIR = (".lora_a", ".lora_b")
_UNFIT_TYPES = {"I8", "I16", "I32", "I64", "F64"}  # llama.cpp multiplies with none of them
_F32 = 4


class LoraFile(Struct, frozen=True):
    """What an adapter's header says."""

    architecture: str
    weights_bytes: int
    tensors: dict[str, TensorInfo]  # both of each pair, without those of norms

    def scratch_bytes(self, batch: int) -> int:
        """Return what its widest product needs beside the model's, for so many tokens."""
        widest = max(
            (info.shape[1] for name, info in self.tensors.items() if name.endswith(_PAIR[1])),
            default=0,
        )
        return 2 * batch * widest * _F32


def read_lora(path: Path) -> LoraFile:
    """Read and check the header of an adapter; raises GgufError and OSError."""
    header = read_any(path)
    metadata = header.metadata
    kind = str(metadata.get("general.type", "model"))
    if kind != "adapter":
        raise GgufError(f"holds a {kind}, not an adapter (LoRA)")
    form = metadata.get("adapter.type")
    if form != "lora":
        raise GgufError(f"holds an adapter of type {form!r}, and only LoRA is known")
    if "adapter.alora.invocation_tokens" in header.lengths:
        raise GgufError(
            "holds an activated LoRA (aLoRA), which starts in the middle of a prompt: edged does "
            "not run it; train it as a plain LoRA"
        )
    tensors = {
        name: info
        for name, info in read_tensors(path).items()
        if not name.endswith("_norm.weight")  # llama.cpp reads over them
    }
    if not tensors:
        raise GgufError("holds an adapter without weights")
    for name, info in tensors.items():
        if not name.endswith(_PAIR):
            raise GgufError(f"has the tensor {name}, which is no part of a LoRA")
        other = name[:-1] + ("b" if name[-1] == "a" else "a")
        if other not in tensors:
            raise GgufError(f"is damaged: it has {name} and not {other}")
        if info.type in _UNFIT_TYPES or len(info.shape) < 2:  # noqa: PLR2004 - a matrix
            raise GgufError(f"is damaged: {name} cannot be {list(info.shape)} of {info.type}")
    return LoraFile(
        architecture=str(metadata.get("general.architecture")),
        weights_bytes=header.weights_bytes,
        tensors=tensors,
    )


def misfit(adapter: LoraFile, architecture: str, model: Mapping[str, TensorInfo]) -> str | None:
    """Return why the adapter cannot change this model, None if it can.

    llama.cpp checks most of it again; what it does not check would end the worker.
    """
    if adapter.architecture != architecture:
        return f"is for models of the architecture {adapter.architecture}, not {architecture}"
    for name, a in adapter.tensors.items():
        if not name.endswith(_PAIR[0]):
            continue
        target = name.removesuffix(_PAIR[0])
        if target not in model:
            return f"changes {target}, which the model does not have: it is for another model"
        b, base = adapter.tensors[target + _PAIR[1]], model[target]
        if base.type == "NVFP4" and ".ffn_" in target:
            return f"changes {target}, which is NVFP4: llama.cpp adds no LoRA to it"
        if not _fits(target, a.shape, b.shape, base.shape):
            return (
                f"has {list(a.shape)} and {list(b.shape)} for {target}, which is "
                f"{list(base.shape)}: it is for another model"
            )
    return None


def _fits(target: str, a: tuple[int, ...], b: tuple[int, ...], base: tuple[int, ...]) -> bool:
    if len(base) < 2 or not a[2:] == b[2:] == base[2:]:  # noqa: PLR2004 - a matrix; its experts
        return False
    if target == "token_embd.weight":  # looked up, not multiplied: the other way round
        return (b[1], a[1], a[0]) == (base[0], base[1], b[0])
    return (a[0], b[1], a[1]) == (base[0], base[1], b[0])
