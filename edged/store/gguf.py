"""The header of a GGUF file: metadata and tensor table, never the tensors.

Own code on purpose (docs/adr/0002): the gguf package needs numpy, which the daemon cannot afford.
Reads front to back in pieces of one MiB; every length is checked against the file before it is
believed, so a hostile file costs neither memory nor time. Not mapped: a file that shrinks under a
mapping would kill the daemon with SIGBUS.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from msgspec import Struct
from msgspec.structs import replace

from edged.errors import GgufError
from edged.protocol import Kind, Pooling
from edged.store import parts
from edged.store.gguf_reader import PIECE_BYTES, SCALARS, Reader, truncated
from edged.store.gguf_tensors import TensorInfo, TensorTable

_MAX_KEYS = 1 << 12  # models have some fifty
_MAX_TENSORS = 1 << 17
_KEPT_STRING_BYTES = 1 << 12
_KEPT_NUMBERS = 1 << 12  # of one array; per-layer figures, not vocabularies
_KEPT_NUMBERS_IN_ALL = 1 << 16
_MAX_LAYERS = 1 << 12
_LONGEST_TEXT_BYTES = 1 << 24

_STRING, _ARRAY = 8, 9

_ENCODERS = {
    "bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert",
    "neo-bert", "eurobert", "gemma-embedding", "t5encoder",
}  # fmt: skip
_POOLING: dict[int | None, Pooling] = {1: "mean", 2: "cls", 3: "last", 4: "rank"}


class GgufHeader(Struct, frozen=True):
    """What a header says. Long strings and long arrays are counted, not kept."""

    version: int
    file_bytes: int
    metadata: dict[str, Any]  # scalars, short strings, short arrays of numbers (tuples)
    lengths: dict[str, int]  # strings: bytes; arrays: elements
    n_tensors: int
    weights_bytes: int
    bytes_by_type: dict[str, int]
    embedding_rows: int | None  # of the token embedding
    attention_layers: frozenset[int]
    recurrent_layers: frozenset[int]
    classifier: bool = False  # a head that gives scores

    @property
    def architecture(self) -> str:
        """The family: `llama`, `qwen2` and so on."""
        return str(self.metadata["general.architecture"])

    @property
    def n_parts(self) -> int:
        """Files that the model is split over."""
        n_parts = self.metadata.get("split.count", 1)
        return n_parts if _is_count(n_parts) else 1

    @property
    def quantisation(self) -> str:
        """The type that most of its bytes have: about what makers call the quantisation."""
        return max(self.bytes_by_type, key=self.bytes_by_type.__getitem__, default="none")

    @property
    def name(self) -> str | None:
        """What the maker calls it."""
        name = self.metadata.get("general.name")
        return name if isinstance(name, str) else None

    @property
    def context_length(self) -> int | None:
        """Tokens that it was trained on."""
        return self.number("context_length")

    @property
    def block_count(self) -> int:
        """Layers."""
        return self.number("block_count") or 0

    @property
    def embedding_length(self) -> int:
        """Width of a token's vector."""
        return self.number("embedding_length") or 0

    @property
    def n_vocab(self) -> int:
        """Entries of the vocabulary."""
        tokens = self.lengths.get("tokenizer.ggml.tokens")
        return tokens or self.number("vocab_size") or self.embedding_rows or 0

    @property
    def chat_template(self) -> bool:
        """Whether it brings a chat template."""
        return self.lengths.get("tokenizer.chat_template", 0) > 0

    @property
    def sliding_window(self) -> int | None:
        """Tokens that a sliding-window layer looks back on; None: no such layers."""
        return self.number("attention.sliding_window") or None

    @property
    def kind(self) -> Kind:
        """What it is for."""
        if self.pooling == "rank":
            return "rerank"
        return "embeddings" if self.pooling or self.is_encoder else "chat"

    @property
    def pooling(self) -> Pooling | None:
        """How it makes one vector, or one score, of many; None: it does not say."""
        return _POOLING.get(self.number("pooling_type"))

    @property
    def is_encoder(self) -> bool:
        """Whether it reads text and cannot write any: it keeps no KV."""
        return self.architecture in _ENCODERS

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only those before it."""
        said = self.metadata.get(f"{self.architecture}.attention.causal", not self.is_encoder)
        return bool(said) and not self.is_encoder

    def number(self, key: str) -> int | None:
        """Return the whole number `ARCHITECTURE.key`, None where there is none."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if _is_count(value) else None

    def per_layer(self, key: str, default: int) -> tuple[int, ...]:
        """Return `ARCHITECTURE.key` for each layer; one figure stands for all."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        values = value if isinstance(value, tuple) else (value,) * self.block_count
        layers = tuple(v if _is_count(v) else default for v in values[: self.block_count])
        return layers + (default,) * (self.block_count - len(layers))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of a model file.

    Raises GgufError, whose message is a predicate about the file, and OSError. A file that has
    been read before and has not changed is not read again.
    """
    header = read_any(path)
    if header.n_parts > 1:
        header = _joined(header, path)
    _check(header)
    return header


def _joined(first: GgufHeader, path: Path) -> GgufHeader:
    """Return one header for all parts of a model in several files; `path` is the first's."""
    names = parts.of(path)
    if first.metadata.get("split.no", 0) != 0 or len(names) != first.n_parts:
        raise GgufError(
            f"is one of {first.n_parts} parts: name the first, which ends in "
            f"-00001-of-{first.n_parts:05}.gguf, and keep all of them beside it"
        )
    whole = first
    for name in names[1:]:
        try:
            part = read_any(name)
        except FileNotFoundError:
            raise GgufError(
                f"is one of {first.n_parts} parts, and {name.name} is missing"
            ) from None
        except GgufError as error:
            raise GgufError(f"has a part {name.name} that {error.message}") from None
        sizes = whole.bytes_by_type | {
            kind: whole.bytes_by_type.get(kind, 0) + n for kind, n in part.bytes_by_type.items()
        }
        whole = replace(
            whole,
            file_bytes=whole.file_bytes + part.file_bytes,
            n_tensors=whole.n_tensors + part.n_tensors,
            weights_bytes=whole.weights_bytes + part.weights_bytes,
            bytes_by_type=sizes,
            embedding_rows=whole.embedding_rows or part.embedding_rows,
            attention_layers=whole.attention_layers | part.attention_layers,
            recurrent_layers=whole.recurrent_layers | part.recurrent_layers,
            classifier=whole.classifier or part.classifier,
        )
    return whole


def read_stream(file: BinaryIO, size: int) -> GgufHeader:
    """Read the header of a file that is elsewhere; raises as `read_header` does.

    Of a model in several files this is the first part's: all metadata, some of the tensors.
    """
    return _parse(Reader(file, size), None)


# By path, the newest of each: a file that is written again and again leaves nothing behind.
_headers: dict[str, tuple[tuple[int, int, int], GgufHeader]] = {}
_MOST_HEADERS = 4096  # of some 40 KB


def read_any(path: Path) -> GgufHeader:
    """Read the header of a GGUF file of any kind; raises as `read_header` does."""
    status = path.stat()
    identity = (status.st_size, status.st_mtime_ns, status.st_ino)
    known = _headers.get(str(path))
    if known is not None and known[0] == identity:
        return known[1]
    with path.open("rb", buffering=0) as file:
        header = _parse(Reader(file, status.st_size), None)
    if len(_headers) >= _MOST_HEADERS:
        _headers.clear()
    _headers[str(path)] = (identity, header)
    return header


def read_text(path: Path, key: str) -> str | None:
    """Return one string of the metadata, however long; raises as `read_header` does."""
    with path.open("rb", buffering=0) as file:
        reader = Reader(file, path.stat().st_size)
        _, n_keys = _counts(reader)
        for _ in range(n_keys):
            name = reader.name("a metadata key")
            kind = reader.number("I")
            if name == key and kind == _STRING:
                return reader.take(
                    reader.count("Q", _LONGEST_TEXT_BYTES, f"bytes in {key}")
                ).decode(errors="replace")
            _value(reader, name, kind, {}, {})
    return None


def read_tensors(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a GGUF file of any kind; raises as `read_header` does.

    They are not kept: only who compares files asks for them.
    """
    tensors: dict[str, TensorInfo] = {}
    for part in parts.of(path):
        with part.open("rb", buffering=0) as file:
            _parse(Reader(file, part.stat().st_size), tensors)
    return tensors


# ── the walk through the file ──


def _counts(reader: Reader) -> tuple[tuple[int, int], int]:
    """Read the beginning; return version and number of tensors, and number of metadata entries."""
    magic = reader.take(4) if reader.left >= 4 else b""  # noqa: PLR2004 - its length
    if magic != b"GGUF":
        raise GgufError(f"is not a GGUF file: {_first_bytes(magic)}")
    version = reader.number("I")
    if version in (2 << 24, 3 << 24):
        raise GgufError("is a big-endian GGUF file, for another kind of processor")
    if version not in (2, 3):
        raise GgufError(f"is a GGUF file of version {version}; 2 and 3 can be read")
    n_tensors = reader.count("Q", _MAX_TENSORS, "tensors")
    n_keys = reader.count("Q", _MAX_KEYS, "metadata entries")
    return (version, n_tensors), n_keys


def _parse(reader: Reader, tensors: dict[str, TensorInfo] | None) -> GgufHeader:
    (version, n_tensors), n_keys = _counts(reader)
    metadata: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for _ in range(n_keys):
        key = reader.name("a metadata key")
        _value(reader, key, reader.number("I"), metadata, lengths)
    table = TensorTable(tensors)
    for _ in range(n_tensors):
        table.add(reader)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= PIECE_BYTES:
        raise GgufError(f"is damaged: its alignment is {alignment}")
    data_start = -(-reader.position // alignment) * alignment
    if n_tensors and data_start + table.end > reader.size:
        raise truncated(reader.size, data_start + table.end)
    attention = table.attention_layers | (table.fused_layers - table.recurrent_layers)
    return GgufHeader(
        version=version,
        file_bytes=reader.size,
        metadata=metadata,
        lengths=lengths,
        n_tensors=n_tensors,
        weights_bytes=sum(table.bytes_by_type.values()),
        bytes_by_type=table.bytes_by_type,
        embedding_rows=table.embedding_rows,
        attention_layers=frozenset(attention),
        recurrent_layers=frozenset(table.recurrent_layers),
        classifier=table.classifier,
    )


def _value(
    reader: Reader, key: str, kind: int, metadata: dict[str, Any], lengths: dict[str, int]
) -> None:
    """Read one entry's value into `metadata` if it is small, and its length into `lengths`."""
    if kind == _STRING:
        lengths[key] = length = reader.number("Q")
        if length <= _KEPT_STRING_BYTES:
            metadata[key] = reader.take(length).decode(errors="replace")
        else:
            reader.skip(length)
    elif kind == _ARRAY:
        element = reader.number("I")
        lengths[key] = count = reader.number("Q")
        code = SCALARS.get(element)
        if element == _STRING:
            reader.skip_strings(count)
        elif code is None:
            raise GgufError(f"is damaged: {key} is an array of type {element}")
        elif count <= min(_KEPT_NUMBERS, _KEPT_NUMBERS_IN_ALL - reader.n_kept):
            reader.n_kept += count
            width = struct.calcsize("<" + code)
            metadata[key] = struct.unpack(f"<{count}{code}", reader.take(count * width))
        else:
            reader.skip(count * struct.calcsize("<" + code))
    else:
        code = SCALARS.get(kind)
        if code is None:
            raise GgufError(f"is damaged: {key} has the unknown type {kind}")
        metadata[key] = reader.number(code)


# ── what makes it no model ──


def _check(header: GgufHeader) -> None:
    metadata = header.metadata
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise GgufError(f"holds {_OTHER_KINDS.get(str(kind), f'a {kind}')}, not a model")
    if not isinstance(metadata.get("general.architecture"), str):
        raise GgufError("does not say its architecture: it is not a language model")
    if header.architecture == "clip":
        raise GgufError("holds an image projector (mmproj), not a model")
    if header.block_count > _MAX_LAYERS:
        raise GgufError(f"is damaged: it claims {header.block_count} layers")
    if not header.n_tensors:
        raise GgufError("holds a vocabulary without weights, not a model")
    n_tokens = header.lengths.get("tokenizer.ggml.tokens")
    if n_tokens and header.embedding_rows and n_tokens != header.embedding_rows:
        raise GgufError(
            f"has the wrong vocabulary: {n_tokens} tokens for {header.embedding_rows} embeddings"
        )


_OTHER_KINDS = {
    "adapter": "an adapter (LoRA)",
    "mmproj": "an image projector (mmproj)",
    "imatrix": "an importance matrix",
}


def _first_bytes(magic: bytes) -> str:
    return f"it begins with {magic!r}" if magic else "it is shorter than four bytes"
