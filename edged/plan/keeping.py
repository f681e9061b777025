"""How a model's context is kept in memory: which of its layers forget, and in which numbers."""

from __future__ import annotations

from msgspec.structs import replace

from edged.config import LlamaCppOptions
from edged.config.values import format_bytes
from edged.plan.estimate import estimate, head_widths, kv_block, window_layers
from edged.store.gguf import GgufHeader

# What full windows may take of the memory for models where nobody says whether to have them.
_SHARE_FOR_WINDOWS = 8
_NO_FLASH_ATTENTION = {"grok"}  # llama.cpp switches it off for these


def with_window(
    header: GgufHeader, options: LlamaCppOptions, *, context: int, parallel: int, budget: int
) -> tuple[LlamaCppOptions, str | None]:
    """Return options that say whether layers with a window keep all, and the reason if they do not.

    `budget`: bytes for all models.
    """
    if options.full_window is not None:
        return options, None
    both = {
        full: estimate(
            header,
            context=context,
            parallel=parallel,
            options=replace(options, full_window=full),
        ).kv_bytes
        for full in (True, False)
    }
    extra = both[True] - both[False]
    full = not window_layers(header) or extra <= budget // _SHARE_FOR_WINDOWS
    reason = None if full else f"full_window is off: it would take {format_bytes(extra)} more"
    return replace(options, full_window=full), reason


def unfit_kv_type(header: GgufHeader, options: LlamaCppOptions) -> str | None:
    """Return why llama.cpp cannot keep this model's context as `kv_type` says; None: it can."""
    name, block = options.kv_type, kv_block(options.kv_type)
    if block == 1 or not header.attention_layers or header.is_encoder:
        return None
    if header.architecture in _NO_FLASH_ATTENTION:
        return f'kv_type = "{name}" needs flash attention, which this model cannot use: take "f16"'
    odd = next((width for width in head_widths(header) if width % block), None)
    if odd is not None:
        return (
            f'kv_type = "{name}" packs {block} numbers together, '
            f'and the heads of this model have {odd}: take "f16" or "bf16"'
        )
    return None
