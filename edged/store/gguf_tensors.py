"""The table of tensors in a GGUF header: how large they are, and what their names give away."""

from __future__ import annotations

import math
from typing import NamedTuple

from edged.errors import GgufError
from edged.store.ggml_types import TENSOR_TYPES
from edged.store.gguf_reader import Reader

_MAX_DIMENSIONS = 4
_MAX_TENSOR_BYTES = 1 << 50


class TensorInfo(NamedTuple):
    """Of one tensor: its dimensions, the innermost first, and its type's name."""

    shape: tuple[int, ...]
    type: str


class TensorTable:
    """Adds up the tensor infos as they pass, and writes them into `infos` if that is given."""

    def __init__(self, infos: dict[str, TensorInfo] | None) -> None:
        self._infos = infos
        self.end = 0  # of the tensor data, from its start
        self.bytes_by_type: dict[str, int] = {}
        self.embedding_rows: int | None = None
        self.attention_layers: set[int] = set()
        self.recurrent_layers: set[int] = set()
        self.fused_layers: set[int] = set()  # with a matrix for q, k and v, of either kind
        self.classifier = False

    def add(self, reader: Reader) -> None:
        """Read the next tensor's entry; raises GgufError."""
        name = reader.name("a tensor name")
        n_dimensions = reader.count("I", _MAX_DIMENSIONS, f"dimensions of {name}")
        dimensions = [reader.number("Q") for _ in range(n_dimensions)]
        type_id = reader.number("I")
        offset = reader.number("Q")
        if type_id not in TENSOR_TYPES:
            raise GgufError(
                f"has tensors of the unknown type {type_id} ({name}): it may be newer than edged"
            )
        type_name, block, block_bytes = TENSOR_TYPES[type_id]
        row = dimensions[0] if dimensions else 1
        n_bytes = math.prod(dimensions) // block * block_bytes
        if row % block or n_bytes > _MAX_TENSOR_BYTES or offset > _MAX_TENSOR_BYTES:
            raise GgufError(f"is damaged: {name} cannot be {dimensions} of {type_name}")
        if self._infos is not None:
            self._infos[name] = TensorInfo(tuple(dimensions), type_name)
        self.end = max(self.end, offset + n_bytes)
        self.bytes_by_type[type_name] = self.bytes_by_type.get(type_name, 0) + n_bytes
        if name == "token_embd.weight" and n_dimensions > 1:
            self.embedding_rows = dimensions[1]
        self.classifier = self.classifier or name in ("cls.weight", "cls.output.weight")
        if name.startswith("blk."):
            self._layer(name)

    def _layer(self, name: str) -> None:
        _, number, part = name.split(".", 2) if name.count(".") > 1 else ("", "", "")
        if not number.isdecimal():
            return
        if part.startswith("attn_qkv."):
            self.fused_layers.add(int(number))
        elif part.startswith(("attn_k.", "attn_kv_a_mqa.")):
            self.attention_layers.add(int(number))
        elif part.startswith(("ssm_", "time_mix_", "shortconv.")):
            self.recurrent_layers.add(int(number))
