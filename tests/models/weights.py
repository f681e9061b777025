"""Random weights of a model and the GGUF file that holds them.

Matrices are normal with a standard deviation that keeps a unit-variance input at unit variance,
times a gain; norms are ones. Rows of tokens that a model should not say are small, so that
generation neither stops early nor leaves half a UTF-8 character.
"""

import dataclasses
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from tests.models.vocabulary import Vocabulary, WordPiece

UNSAID = 0.1

Setting = str | bool | int | float | list[int] | list[bool] | list[float] | list[str]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor to draw: ``shape`` in numpy's order (llama.cpp's reversed).

    ``std`` 0 with ``mean`` makes a constant tensor; ``rows`` scales each row.
    """

    name: str
    shape: tuple[int, ...]
    std: float = 0.0
    mean: float = 0.0
    rows: np.ndarray | None = None

    def draw(self, seed: int) -> np.ndarray:
        """Return the float32 values; they depend on the seed and the name only."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        if not self.std:
            return np.full(self.shape, self.mean, np.float32)
        values = rng.standard_normal(self.shape, np.float32)
        values *= self.std
        values += self.mean
        if self.rows is not None:
            values *= self.rows[:, None]
        return values


def matrix(name: str, n_out: int, n_in: int, gain: float = 1.0) -> Tensor:
    """Return a linear map of ``n_in`` to ``n_out`` values."""
    return Tensor(f"{name}.weight", (n_out, n_in), std=gain / math.sqrt(n_in))


def norm(name: str, size: int, mean: float = 1.0) -> Tensor:
    """Return the weight of a norm."""
    return Tensor(f"{name}.weight", (size,), mean=mean)


def bias(name: str, size: int, std: float = 0.1) -> Tensor:
    """Return a random bias."""
    return Tensor(f"{name}.bias", (size,), std=std)


def embedding(
    vocabulary: Vocabulary | WordPiece, size: int, std: float = 0.02, name: str = "token_embd"
) -> Tensor:
    """Return the token embeddings, which serve as the output matrix where there is no other."""
    rows = np.where(vocabulary.sayable(), 1.0, UNSAID).astype(np.float32)
    return Tensor(f"{name}.weight", (len(rows), size), std=std, rows=rows)


def write_gguf(
    path: Path,
    *,
    arch: str,
    name: str,
    settings: Mapping[str, Setting],
    vocabulary: Vocabulary | WordPiece | None,
    tensors: Iterable[Tensor],
    matrix_type: type[np.floating] = np.float32,
    seed: int = 1,
) -> None:
    """Write a GGUF file; vectors stay float32.

    ``settings`` keys get the prefix ``arch`` unless they are the tokenizer's.
    """
    tensors = list(tensors)
    writer = GGUFWriter(path, arch)
    writer.add_name(name)
    for key, value in settings.items():
        _add(writer, key if key.startswith("tokenizer.") else f"{arch}.{key}", value)
    if vocabulary is not None:
        vocabulary.write(writer)
    types = [np.dtype(matrix_type if len(t.shape) > 1 else np.float32) for t in tensors]
    for tensor, kind in zip(tensors, types, strict=True):
        n_bytes = math.prod(tensor.shape) * kind.itemsize
        writer.add_tensor_info(tensor.name, tensor.shape, kind, n_bytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, kind in zip(tensors, types, strict=True):
        writer.write_tensor_data(tensor.draw(seed).astype(kind, copy=False))
    writer.close()


def _add(writer: GGUFWriter, key: str, value: Setting) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)
