"""How much memory llama.cpp will take for a model: from the header alone, before anything starts.

The formulas follow llama.cpp's own allocations and are held against a real context by
tests/llamacpp/test_estimate.py: KV exactly, compute buffers within some percent.
"""

from __future__ import annotations

from msgspec import Struct

from edged.config import LlamaCppOptions
from edged.protocol import Pooling
from edged.store.ggml_types import TENSOR_TYPES
from edged.store.gguf import GgufHeader

# Python, numpy, the libraries and the threads of a worker beside its model; measured: 56 to 58 MiB
PROCESS_BYTES = 60 << 20
# … and what a vocabulary costs beside its file, in llama.cpp and in Python; measured at 152,000
_TOKEN_BYTES = 400
# llama.cpp holds room for every node of its graphs, touched when the largest batch is computed: a
# number for each tensor, or where layers are computed in many pieces for each token of a batch
# (`graph_max_nodes`, llama-context.cpp); the bytes are measured at 20,480 nodes.
_NODE_BYTES = 1200
_NODES = (1024, 8)  # at least, and for each tensor; so many are in PROCESS_BYTES
_PIECES = dict.fromkeys(
    (
        "qwen3next", "qwen35", "qwen35moe", "qwen4exp", "kimi-linear", "bailingmoe3", "deepseek4",
        "nanbeige", "minimax-01", "minimax-m3", "hy_v4",
    ),
    (40, 32),  # for each token, for each tensor
) | {"kimi-k3": (160, 64), "glm5-next": (160, 64), "hrm_text": (80, 64)}  # fmt: skip
_KV_PADDING = 256  # llama.cpp rounds the cells up to it
_MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ of llama.cpp
# Residents cost nothing where they only hold cells of the pool; states and windows are their own.
_RESIDENTS_BYTES = 256 << 20
_FEWEST_RESIDENTS = 2
# Every n-th layer has no window, where the file does not say which (src/models of llama.cpp). What
# is not listed is counted as if all layers kept all.
_PATTERNS = {
    "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4, "exaone4": 4,
    "exaone-moe": 4, "llama4": 4, "olmo2": 4, "plamo3": 8, "afmoe": 4, "mellum": 4,
}  # fmt: skip
_F32 = 4


class MemoryEstimate(Struct, frozen=True):
    """Main memory that a worker will take, in bytes."""

    weights_bytes: int
    kv_bytes: int  # recurrent states are counted here too
    compute_bytes: int  # scratch of one decode, and the logits
    process_bytes: int = PROCESS_BYTES
    adapters_bytes: int = 0  # of the adapters that can be used, their scratch included

    @property
    def total_bytes(self) -> int:
        """All of it."""
        computing = self.kv_bytes + self.compute_bytes + self.process_bytes
        return self.weights_bytes + computing + self.adapters_bytes


def estimate(
    header: GgufHeader,
    *,
    context: int,
    parallel: int,
    options: LlamaCppOptions,
    pooling: Pooling | None = None,
) -> MemoryEstimate:
    """Estimate a worker that keeps `parallel` sequences of `context` tokens, all on the CPU.

    `pooling`: one that computes vectors or scores instead, an input after the other.
    """
    cells = cells_of(context, parallel, options, pooling)
    cells = -(-cells // _KV_PADDING) * _KV_PADDING
    # as the runners do: spare sequences for resident prefixes, or as many inputs as share a batch
    if pooling:
        sequences = 4 if header.recurrent_layers else 64
    else:
        sequences = min(parallel + residents_of(header, parallel, options), _MOST_SEQUENCES)
    return MemoryEstimate(
        weights_bytes=header.weights_bytes,
        kv_bytes=_kv_bytes(header, cells, sequences, options) + _state_bytes(header) * sequences,
        compute_bytes=_compute_bytes(header, cells, sequences, options, pooling),
        process_bytes=PROCESS_BYTES
        + header.n_vocab * _TOKEN_BYTES
        + _graph_bytes(header, _batch(header, cells, options, pooling)),
    )


def cells_of(context: int, parallel: int, options: LlamaCppOptions, pooling: Pooling | None) -> int:
    """Return the KV cells of a context, or the tokens of its largest batch where it keeps none."""
    return max(context, options.batch) if pooling else context * parallel


def _batch(
    header: GgufHeader, cells: int, options: LlamaCppOptions, pooling: Pooling | None
) -> int:
    """Return the tokens of the largest decode: an input that cannot be read in parts is one."""
    in_parts = pooling is None or (header.is_causal and pooling in ("last", "rank"))
    return min(options.batch, cells) if in_parts else cells


def residents_of(header: GgufHeader, parallel: int, options: LlamaCppOptions) -> int:
    """Return how many sequences beside `parallel` may keep their memory when they have ended."""
    most = max(8, parallel)
    each = _state_bytes(header)
    if options.full_window is False:
        window = header.sliding_window or 0
        each += sum(_layer_bytes(header, layer, window, options) for layer in window_layers(header))
    return min(most, max(_FEWEST_RESIDENTS, _RESIDENTS_BYTES // each)) if each else most


def window_layers(header: GgufHeader) -> frozenset[int]:
    """Return the layers that see no more than a window, as far as that is known."""
    if not header.sliding_window:
        return frozenset()
    said = header.metadata.get(f"{header.architecture}.attention.sliding_window_pattern")
    layers = range(header.block_count)
    if isinstance(said, tuple):
        return frozenset(layer for layer in layers if layer < len(said) and said[layer])
    pattern = said if isinstance(said, int) else _PATTERNS.get(header.architecture, 1)
    if header.architecture not in _PATTERNS:
        return frozenset()
    return frozenset(n for n in layers if pattern == 0 or n % pattern < pattern - 1)


def _kv_bytes(header: GgufHeader, cells: int, sequences: int, options: LlamaCppOptions) -> int:
    """Return the size of the KV cache."""
    if not header.attention_layers or header.is_encoder:
        return 0
    few = _window_cells(header, cells, sequences, options)
    narrow = window_layers(header)
    # the last layers of some models read the cache of earlier ones
    own_cache = header.block_count - (header.number("attention.shared_kv_layers") or 0)
    return sum(
        _layer_bytes(header, layer, few if layer in narrow else cells, options)
        for layer in header.attention_layers
        if layer < own_cache
    )


def _window_cells(header: GgufHeader, cells: int, sequences: int, options: LlamaCppOptions) -> int:
    """Return the cells of a layer with a window."""
    if options.full_window is not False:
        return cells
    few = (header.sliding_window or 0) * sequences + min(options.batch, cells)
    return -(-min(cells, few) // _KV_PADDING) * _KV_PADDING


def _layer_bytes(header: GgufHeader, layer: int, cells: int, options: LlamaCppOptions) -> int:
    heads = header.per_layer("attention.head_count", 1)
    heads_kv = header.per_layer("attention.head_count_kv", max(heads, default=1))
    block, block_bytes = _type_size(options.kv_type)
    return sum(
        cells * (heads_kv[layer] * width // block) * block_bytes for width in head_widths(header)
    )


def kv_block(kv_type: str) -> int:
    """Return how many numbers this type packs together."""
    return _type_size(kv_type)[0]


def head_widths(header: GgufHeader) -> tuple[int, int]:
    """Return the lengths of one head's key and value."""
    n_heads = max(header.per_layer("attention.head_count", 1), default=1)
    default = header.embedding_length // max(n_heads, 1)
    width_k = header.number("attention.key_length") or default
    if header.number("attention.key_length_mla"):  # the value is a part of the compressed key
        return width_k, 0
    return width_k, header.number("attention.value_length") or default


def _state_bytes(header: GgufHeader) -> int:
    """Return the recurrent state of one sequence over all layers."""
    width = header.embedding_length
    head = header.number("wkv.head_size")
    conv_cells = header.number("shortconv.l_cache")
    if head:  # RWKV: token shift and one matrix a head
        values = (header.number("token_shift_count") or 2) * width + width * head
    elif conv_cells:  # LFM2
        values = width * (conv_cells - 1)
    else:  # Mamba and its kin
        inner = header.number("ssm.inner_size") or 0
        states = header.number("ssm.state_size") or 0
        kernel = header.number("ssm.conv_kernel") or 1
        groups = header.number("ssm.group_count") or 0
        values = (kernel - 1) * (inner + 2 * groups * states) + states * inner
    return len(header.recurrent_layers) * values * _F32


def _compute_bytes(
    header: GgufHeader,
    cells: int,
    sequences: int,
    options: LlamaCppOptions,
    pooling: Pooling | None,
) -> int:
    batch = _batch(header, cells, options, pooling)
    # llama.cpp gives every token of an embeddings batch a row for logits, used or not
    logits = (batch if pooling else sequences) * header.n_vocab * _F32
    n_heads = max(header.per_layer("attention.head_count", 1), default=1)
    width = max(header.embedding_length, n_heads * sum(head_widths(header)) // 2)
    feed_forward = max(header.per_layer("feed_forward_length", 0), default=0)
    experts = (header.number("expert_used_count") or 0) * (
        header.number("expert_feed_forward_length") or 0
    )
    # the widest moment of a layer: both inputs and the product of the feed-forward part, beside
    # the residual stream and its norm
    layer = batch * (3 * max(feed_forward, experts) + 4 * width) * _F32
    attention = 0
    if header.attention_layers:
        seen = cells  # by a token of each kind of layer
        # llama.cpp runs hybrids without a window, also where their file names one
        if header.sliding_window and not header.recurrent_layers:
            seen += _window_cells(header, cells, sequences, options)
        if options.flash_attention == "off":  # every score of a batch exists at once
            attention = batch * (cells * n_heads + seen) * _F32
        else:
            attention = batch * seen * 2
    head = 0 if header.is_encoder else logits + batch * width * _F32
    return logits + attention + max(layer, head)


def _graph_bytes(header: GgufHeader, batch: int) -> int:
    """Return what graphs take beyond those of a small model."""
    fewest, by_tensor = _NODES
    if header.architecture in _PIECES:
        by_token, by_tensor = _PIECES[header.architecture]
        fewest = by_token * batch
    nodes = max(fewest, by_tensor * header.n_tensors)
    return (nodes - _NODES[0]) * _NODE_BYTES


def _type_size(name: str) -> tuple[int, int]:
    return next(
        (block, n_bytes)
        for type_name, block, n_bytes in TENSOR_TYPES.values()
        if type_name.lower() == name
    )
