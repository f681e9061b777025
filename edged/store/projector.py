"""The header of an image or audio projector (mmproj): the other GGUF file of a model that sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from edged.errors import GgufError
from edged.store.gguf import GgufHeader, read_any

Medium = Literal["image", "audio"]

KEPT_BYTES = 64 << 20  # of vectors, by the worker: the same image is encoded once
_F32 = 4
# Projectors that take an image as large as it is get 4,096 tokens at most, of four patches.
_MOST_PATCHES = 4096 * 4
_ONE_SIZE = {
    "mlp", "mlp_norm", "ldp", "ldpv2", "adapter", "gemma3", "gemma3nv", "idefics3", "internvl",
    "llama4", "janus_pro", "cogvlm", "resampler", "minicpmv4_6", "nemotron_v2_vl", "yasa2",
}  # fmt: skip
# Their tokens depend on where in the prompt an image stands, so it cannot be read by itself.
_UNFIT = {"hunyuanvl": "HunyuanVL", "deepseek4v": "DeepSeek 4"}


class Projector(Struct, frozen=True):
    """What a projector takes and costs."""

    media: tuple[Medium, ...]
    weights_bytes: int
    compute_bytes: int  # scratch for one image or sound, and what is kept of the last ones; at most


def read_projector(path: Path) -> Projector:
    """Read and check the header of a projector; raises GgufError and OSError."""
    header = read_any(path)
    metadata = header.metadata
    kind = metadata.get("general.architecture")
    if kind != "clip":
        raise GgufError(f"holds no image projector (mmproj) but a model ({kind or 'of no name'})")
    media: list[Medium] = []
    if metadata.get("clip.has_vision_encoder") is True:
        media.append("image")
    if metadata.get("clip.has_audio_encoder") is True:
        media.append("audio")
    if not media or not header.n_tensors:
        raise GgufError("holds a projector that reads neither images nor sounds")
    for kind in _types(metadata):
        if kind in _UNFIT:
            raise GgufError(f"holds the projector of {_UNFIT[kind]}, which edged does not run")
    return Projector(
        media=tuple(media),
        weights_bytes=header.weights_bytes,
        compute_bytes=_vision_bytes(header) + _audio_bytes(header) + KEPT_BYTES,
    )


def _types(metadata: dict[str, Any]) -> set[str]:
    keys = ("clip.projector_type", "clip.vision.projector_type", "clip.audio.projector_type")
    return {str(metadata[key]) for key in keys if key in metadata}


def _vision_bytes(header: GgufHeader) -> int:
    side, patch = header.number("vision.image_size"), header.number("vision.patch_size")
    if not side or not patch:
        return 0
    n_patches = (side // patch) ** 2
    if not _types(header.metadata) & _ONE_SIZE:
        n_patches = max(n_patches, _MOST_PATCHES)
    return _layer_bytes(header, "vision", n_patches)


def _audio_bytes(header: GgufHeader) -> int:
    # 30 s of sound are 3,000 steps of 10 ms
    return _layer_bytes(header, "audio", 3000) if header.number("audio.block_count") else 0


def _layer_bytes(header: GgufHeader, which: str, n_places: int) -> int:
    width = header.number(f"{which}.embedding_length") or 0
    feed_forward = header.number(f"{which}.feed_forward_length") or 0
    return n_places * (2 * feed_forward + 8 * width) * _F32
