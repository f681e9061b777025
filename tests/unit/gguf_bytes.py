"""GGUF files of any shape, also impossible ones, as bytes."""

import struct
from typing import Any

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
_CODES = {0: "B", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 12: "d"}

MODEL: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Test",
    "llama.context_length": 4096,
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "c", "d"],
    "tokenizer.chat_template": "{{ messages }}",
}
TENSORS = [
    ("token_embd.weight", (64, 4), 0),
    ("blk.0.attn_k.weight", (64, 32), 0),
    ("blk.1.attn_k.weight", (64, 32), 0),
]


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def typed(kind: int, value: Any) -> bytes:
    """Return a metadata value of one type, without its type number."""
    if kind == STRING:
        return string(value)
    return struct.pack("<" + _CODES[kind], value)


def array(kind: int, values: list[Any]) -> bytes:
    return struct.pack("<IQ", kind, len(values)) + b"".join(typed(kind, v) for v in values)


def entry(key: str, value: Any) -> bytes:
    """Return a metadata entry; its type follows the Python type, `bytes` are type and value."""
    if isinstance(value, bytes):
        return string(key) + value
    if isinstance(value, list):
        kind = STRING if value and isinstance(value[0], str) else U32
        return string(key) + struct.pack("<I", ARRAY) + array(kind, value)
    kinds = {bool: BOOL, int: U32, float: F32, str: STRING}
    kind = kinds[type(value)]
    return string(key) + struct.pack("<I", kind) + typed(kind, value)


def gguf(
    metadata: dict[str, Any] | None = None,
    tensors: list[tuple[str, tuple[int, ...], int]] | None = None,
    *,
    version: int = 3,
    data: bool = True,
) -> bytes:
    """Return a whole file of F32 (type 0) and other tensors; the data is zeros."""
    metadata = MODEL if metadata is None else metadata
    tensors = TENSORS if tensors is None else tensors
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    out += b"".join(entry(key, value) for key, value in metadata.items())
    offset = 0
    for name, dimensions, kind in tensors:
        out += string(name) + struct.pack("<I", len(dimensions))
        out += struct.pack(f"<{len(dimensions)}Q", *dimensions)
        out += struct.pack("<IQ", kind, offset)
        n_bytes = 4
        for dimension in dimensions:
            n_bytes *= dimension
        offset += -(-n_bytes // 32) * 32
    out += bytes(-len(out) % 32)
    return out + bytes(offset if data else 0)
