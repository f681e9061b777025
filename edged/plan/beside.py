"""The projector that lay beside a model in its repository: taken where it can be used.

Nobody asked for it by name, so it is never a reason to refuse the model.
"""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from edged.config.values import format_bytes
from edged.errors import StoreError
from edged.plan.estimate import MemoryEstimate
from edged.protocol import LlamaCppLaunch
from edged.store import parts
from edged.store.projector import Projector, read_projector


def take(
    path: Path, settings: LlamaCppLaunch, memory: MemoryEstimate, budget: int
) -> tuple[LlamaCppLaunch, MemoryEstimate, str]:
    """Return both with the projector at `path`, or as they are, and the reason."""
    try:
        projector = read_projector(path)
        file_id = parts.identity(path)
    except StoreError as error:
        return settings, memory, f"{path.name}, which lies beside it, {error.message}"
    except OSError as error:
        return settings, memory, f"{path.name}, which lies beside it: {error.strerror}"
    more = plus(memory, projector)
    if more.total_bytes > budget:
        needed = format_bytes(more.total_bytes)
        return settings, memory, f"images are off: with {path.name} it would need {needed}"
    settings = replace(settings, mmproj=str(path), mmproj_id=file_id, media=projector.media)
    return settings, more, f"images or sounds through {path.name}, which lies beside it"


def plus(memory: MemoryEstimate, projector: Projector) -> MemoryEstimate:
    """Return the memory of a model with its projector."""
    return replace(
        memory,
        weights_bytes=memory.weights_bytes + projector.weights_bytes,
        compute_bytes=memory.compute_bytes + projector.compute_bytes,
    )
