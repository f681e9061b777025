"""GPU memory: what a model takes of each GPU, and which GPUs it gets.

Every model of LMDeploy gets a share of its GPUs for itself, in the order of models.toml; one that
finds no room is told who has it. Figures are estimates from the headers; the worker takes the KV
cache in bytes, so that an error in the rest eats into the spare room and not into a neighbour's
memory. Where a measurement says that the shares do not fit all the same, the supervisor lets the
models take turns.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from edged.config.values import format_bytes
from edged.hardware.gpu import Gpu
from edged.plan.kind import UnfitError
from edged.plan.turbomind import Shape

_CONTEXT_BYTES = 900 << 20  # CUDA's context, code of the kernels, cuBLAS and NCCL, on each GPU
_SPARE = 0.04  # of a GPU: fragmentation, the driver, a screen
PREFILL_TOKENS = 8192  # of a prompt that are computed together; LMDeploy's default
_SCALES_BYTES = 4  # of each head of a quantised KV: scale and zero point, half precision
_FP16 = 2
_F32 = 4


class Vram(Struct, frozen=True):
    """What one model takes of each of its GPUs, in bytes."""

    weights_bytes: int
    cache_bytes: int  # KV
    compute_bytes: int  # activations, logits, and the context of CUDA

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.cache_bytes + self.compute_bytes


def need(
    shape: Shape, weights_bytes: int, *, tokens: int, parallel: int, kv_bits: int, tp: int
) -> Vram:
    """Estimate a model on `tp` GPUs; `tokens` of all requests together are kept."""
    embedding = shape.vocabulary * shape.hidden * _FP16
    weights = weights_bytes + (embedding if shape.is_tied else 0)
    values = 2 * shape.layers * max(1, shape.kv_heads // tp) * shape.head_dim  # of a token
    if kv_bits:
        heads = 2 * shape.layers * max(1, shape.kv_heads // tp)
        a_token = values * kv_bits // 8 + heads * _SCALES_BYTES
    else:
        a_token = values * _FP16
    rows = min(PREFILL_TOKENS, tokens)
    layer = rows * (6 * shape.hidden + 3 * shape.feed_forward // tp) * _FP16
    logits = 2 * parallel * shape.vocabulary * _F32
    return Vram(
        weights_bytes=-(-weights // tp),
        cache_bytes=tokens * a_token,
        compute_bytes=_CONTEXT_BYTES + layer + logits,
    )


def can_share(shape: Shape, tp: int) -> bool:
    """Tell whether `tp` GPUs can share the heads of a model."""
    return shape.heads % tp == 0 and (shape.kv_heads % tp == 0 or tp % shape.kv_heads == 0)


def usable_bytes(gpu: Gpu) -> int:
    """Return what models may take of a GPU."""
    return int(gpu.memory_bytes * (1 - _SPARE))


class Room:
    """What is left of each GPU while models are placed one after the other."""

    def __init__(self, gpus: Iterable[Gpu]) -> None:
        self._gpus = {gpu.index: gpu for gpu in gpus}
        self._left = {gpu.index: usable_bytes(gpu) for gpu in self._gpus.values()}
        self._holders: dict[int, list[str]] = {index: [] for index in self._gpus}

    def left(self, gpus: Iterable[Gpu]) -> int:
        """Return what each of these GPUs has left at least, in bytes."""
        return min(self._left[gpu.index] for gpu in gpus)

    def find(self, among: Iterable[Gpu], amount: int, n: int) -> tuple[Gpu, ...] | None:
        """Return `n` GPUs of one kind with `amount` left on each; None if there are not so many.

        The fullest that will do, so that larger models find room on the others.
        """
        fitting = [gpu for gpu in among if self._left[gpu.index] >= amount]
        fitting.sort(key=lambda gpu: (self._left[gpu.index], gpu.index))
        for first in fitting:
            same = [gpu for gpu in fitting if _kind(gpu) == _kind(first)]
            if len(same) >= n:
                return tuple(sorted(same[:n], key=lambda gpu: gpu.index))
        return None

    def take(self, gpus: Iterable[Gpu], amount: int, model: str) -> None:
        """Give `amount` of each of these GPUs to a model."""
        for gpu in gpus:
            self._left[gpu.index] -= amount
            self._holders[gpu.index].append(model)

    def why_not(self, among: Iterable[Gpu], amount: int, n: int) -> str:
        """Return why no GPUs were found, with figures."""
        each = " each" if n > 1 else ""
        wanted = f"{n} GPUs of one kind" if n > 1 else "a GPU"
        left = ", ".join(
            f"GPU {gpu.index} has {format_bytes(self._left[gpu.index])}"
            + (f" beside {' and '.join(holders)}" if (holders := self._holders[gpu.index]) else "")
            for gpu in among
        )
        return f"needs {format_bytes(amount)} of {wanted}{each}; {left}"


def _kind(gpu: Gpu) -> tuple[str, tuple[int, int] | None]:
    return gpu.name, gpu.compute_capability


def ways_to_share(shape: Shape, n_gpus: int, said: int | None) -> tuple[int, ...]:
    """Return how many GPUs a model may be tried on, few first; raises UnfitError."""
    if said is not None:
        if said > n_gpus:
            raise UnfitError(f"lmdeploy.tp = {said}, and {n_gpus} can be used")
        if not can_share(shape, said):
            raise UnfitError(
                f"lmdeploy.tp = {said} does not divide the {shape.heads} attention heads "
                f"({shape.kv_heads} of them with keys of their own)"
            )
        return (said,)
    powers = (1 << power for power in range(7))
    return tuple(tp for tp in powers if tp <= n_gpus and can_share(shape, tp))
