"""A model with a projector: which files are one, and what the plan makes of it."""

import os
from pathlib import Path

import pytest

from edged import plan
from edged.config import LlamaCppOptions, Source
from edged.errors import GgufError
from edged.store.projector import KEPT_BYTES, read_projector
from tests.unit.gguf_bytes import MODEL, gguf
from tests.unit.test_plan import box, folder, one, refusal

__all__ = ["folder"]

SIZES: dict[str, object] = {
    "clip.vision.image_size": 64,
    "clip.vision.patch_size": 16,
    "clip.vision.embedding_length": 32,
    "clip.vision.feed_forward_length": 64,
}
IMAGES: dict[str, object] = {
    "general.architecture": "clip",
    "general.type": "mmproj",
    "clip.has_vision_encoder": True,
    "clip.projector_type": "mlp",
    **SIZES,
}
BOTH = IMAGES | {
    "clip.has_audio_encoder": True,
    "clip.audio.block_count": 2,
    "clip.audio.embedding_length": 32,
    "clip.audio.feed_forward_length": 64,
}


def write(folder: Path, metadata: dict[str, object]) -> LlamaCppOptions:
    (folder / "mmproj.gguf").write_bytes(gguf(metadata))
    return LlamaCppOptions(mmproj=Source("file", "mmproj.gguf"))


@pytest.mark.parametrize(("metadata", "media"), [(IMAGES, ("image",)), (BOTH, ("image", "audio"))])
def test_model_takes_what_its_projector_takes(
    folder: Path, metadata: dict[str, object], media: tuple[str, ...]
) -> None:
    found = one(folder, llamacpp=write(folder, metadata))
    assert found.refusal is None
    assert found.media == media
    assert found.launch
    assert found.launch.llamacpp
    assert found.launch.llamacpp.mmproj == str(folder / "mmproj.gguf")
    assert one(folder).media == ()


def test_memory_of_the_projector_is_counted(folder: Path) -> None:
    plain, seeing = one(folder), one(folder, llamacpp=write(folder, IMAGES))
    projector = read_projector(folder / "mmproj.gguf")
    assert plain.memory
    assert seeing.memory
    assert projector.weights_bytes > 0
    assert projector.compute_bytes == 16 * (2 * 64 + 8 * 32) * 4 + KEPT_BYTES
    more = projector.weights_bytes + projector.compute_bytes
    assert seeing.memory.total_bytes - plain.memory.total_bytes == more


def test_projector_that_takes_images_of_any_size_is_counted_for_the_largest(folder: Path) -> None:
    write(folder, IMAGES | {"clip.projector_type": "qwen2vl_merger"})
    found = read_projector(folder / "mmproj.gguf")
    assert found.compute_bytes == 4096 * 4 * (2 * 64 + 8 * 32) * 4 + KEPT_BYTES


def test_replaced_projector_is_a_new_launch(folder: Path) -> None:
    options = write(folder, IMAGES)
    before = one(folder, llamacpp=options)
    os.utime(folder / "mmproj.gguf", (1, 1))
    assert one(folder, llamacpp=options).launch != before.launch


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (MODEL, "holds no image projector (mmproj) but a model (llama)"),
        ({}, "but a model (of no name)"),
        ({**IMAGES, "clip.has_vision_encoder": False}, "neither images nor sounds"),
        ({**IMAGES, "clip.projector_type": "hunyuanvl"}, "HunyuanVL"),
    ],
)
def test_file_that_is_no_projector_is_refused(
    folder: Path, metadata: dict[str, object], says: str
) -> None:
    assert says in refusal(folder, llamacpp=write(folder, metadata))
    with pytest.raises(GgufError, match="holds"):
        read_projector(folder / "mmproj.gguf")


def test_missing_projector_is_refused(folder: Path) -> None:
    options = LlamaCppOptions(mmproj=Source("file", "nowhere.gguf"))
    assert "nowhere.gguf" in refusal(folder, llamacpp=options)


def test_projector_that_does_not_fit_into_memory_is_refused(folder: Path) -> None:
    options = write(folder, IMAGES | {"clip.projector_type": "qwen2vl_merger"})
    small = box(limit=100 << 20)
    assert one(folder, small).refusal is None
    assert "the box allows" in refusal(folder, small, llamacpp=options)


def test_projector_of_an_embeddings_model_is_refused(folder: Path) -> None:
    options = LlamaCppOptions(mmproj=write(folder, IMAGES).mmproj, pooling="mean")
    said = refusal(folder, llamacpp=options, kind="embeddings")
    assert "mmproj is for chat models" in said


def test_diff_sees_a_projector_come_and_go(folder: Path) -> None:
    options = write(folder, IMAGES)
    plain, seeing = one(folder), one(folder, llamacpp=options)
    assert plan._kind(plain, seeing) == plan._kind(seeing, plain) == "replaced"
