"""Which quantisation of a model suits this box: the largest that fits with room for the context."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from edged.config import Model
from edged.config.values import format_bytes
from edged.plan import keeping
from edged.plan import kind as kinds
from edged.plan.estimate import estimate
from edged.store.gguf import GgufHeader

# Nobody tells their answers from those of Q8_0, which is half as large and twice as fast.
_FLOATS = {"F32", "F16", "BF16"}


class Quantisation(Struct, frozen=True):
    """One to choose from; `bytes` of all its files."""

    tag: str
    bytes: int


class NothingFitsError(Exception):
    """Even the smallest is too large; the message says the figures and what to do."""


def best(
    found: Sequence[Quantisation], header: GgufHeader, model: Model, budget: int
) -> tuple[int, str]:
    """Return the place of the best in `found` and why; raises NothingFitsError.

    `header`: of any of them, for they differ in their weights only.
    """
    context = min(model.context, header.context_length or model.context)
    computing = _computing_bytes(header, model, context, budget)
    order = sorted(range(len(found)), key=lambda i: -found[i].bytes)
    rational = [i for i in order if found[i].tag not in _FLOATS] or order
    for place, i in enumerate(rational):
        needed = found[i].bytes + computing
        if needed > budget:
            continue
        why = (
            f"{found[i].tag} is the best of {len(found)} quantisations that fits: "
            f"{format_bytes(needed)} with {model.parallel} × {context} tokens, of "  # noqa: RUF001
            f"{format_bytes(budget)} for models"
        )
        if place:
            larger = found[rational[place - 1]]
            why += f"; {larger.tag} would need {format_bytes(larger.bytes + computing)}"
        return i, why
    smallest = found[rational[-1]]
    raise NothingFitsError(
        f"none of its {len(found)} quantisations fits: {smallest.tag}, the smallest, needs "
        f"{format_bytes(smallest.bytes + computing)} with {model.parallel} × {context} tokens, "  # noqa: RUF001
        f"the box allows {format_bytes(budget)}: lower context or parallel, or take a smaller model"
    )


def _computing_bytes(header: GgufHeader, model: Model, context: int, budget: int) -> int:
    """Return what is needed beside the weights."""
    pooling = None
    if header.kind != "chat" or model.kind != "auto":
        _, pooling = kinds.kind_of(model, header)
    parallel = kinds.PARALLEL if pooling and model.parallel_is_default else model.parallel
    options, _ = keeping.with_window(
        header, model.llamacpp, context=context, parallel=parallel, budget=budget
    )
    memory = estimate(
        replace(header, weights_bytes=0),
        context=context,
        parallel=parallel,
        options=options,
        pooling=pooling,
    )
    return memory.total_bytes
