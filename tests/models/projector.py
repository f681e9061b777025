"""Tiny random projectors (mmproj): what turns an image or a sound into tokens of a tiny model.

Each one stands for a way in which an engine must treat its tokens:

* ``image``: LLaVA's, an image is one run of tokens (for ``tiny("plain")``);
* ``image-tiles``: the same, a large image is several runs;
* ``image-whole``: Gemma 3's, whose tokens see each other in both directions (``tiny("swa")``);
* ``image-mrope``: Qwen2-VL's, with positions in two dimensions and as many tokens as the image
  needs (``tiny("mrope")``);
* ``sound``: Ultravox's, 30 s are one run (``tiny("plain")``).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from tests.models.cache import build_once
from tests.models.tiny import N_EMBD
from tests.models.weights import Setting, Tensor, bias, matrix, norm, write_gguf

Projector = Literal["image", "image-tiles", "image-whole", "image-mrope", "sound"]
PROJECTORS: tuple[Projector, ...] = get_args(Projector)

VERSION = 1
WIDTH = 32
N_HEADS = 2
N_FF = 64
N_LAYERS = 2
SIDE = 64  # of an image, in pixels
PATCH = {"image": 16, "image-tiles": 16, "image-whole": 8, "image-mrope": 8}
N_MELS = 80
N_FRAMES = 1500  # of 30 s, after the convolutions
STACK = 25  # frames that become one token
# The embeddings of text have this size; an image's should neither drown them nor vanish.
STD = 0.02

_TYPES = {
    "image": "mlp",
    "image-tiles": "mlp",
    "image-whole": "gemma3",
    "image-mrope": "qwen2vl_merger",
    "sound": "ultravox",
}


def projector(kind: Projector) -> Path:
    """Return a GGUF file of some 100 kB with random float32 weights."""
    return build_once(f"projector-{kind}.v{VERSION}.gguf", lambda path: _write(path, kind))


def _write(path: Path, kind: Projector) -> None:
    sound = kind == "sound"
    write_gguf(
        path,
        arch="clip",
        name=f"tiny {kind}",
        settings={"projector_type": _TYPES[kind]} | (_sound() if sound else _image(kind)),
        vocabulary=None,
        tensors=[*_encoder("a" if sound else "v", kind), *_ends(kind)],
        seed=PROJECTORS.index(kind) + 7,
    )


def _sizes(which: str) -> dict[str, Setting]:
    return {
        f"{which}.embedding_length": WIDTH,
        f"{which}.feed_forward_length": N_FF,
        f"{which}.block_count": N_LAYERS,
        f"{which}.projection_dim": N_EMBD,
        f"{which}.attention.head_count": N_HEADS,
        f"{which}.attention.layer_norm_epsilon": 1e-5,
    }


def _image(kind: Projector) -> dict[str, Setting]:
    own: dict[str, Setting] = {}
    if kind == "image-tiles":
        own = {"vision.image_grid_pinpoints": [128, 64, 64, 128, 128, 128]}
    elif kind == "image-whole":
        own = {"vision.projector.scale_factor": 2}
    return {
        "has_vision_encoder": True,
        "use_gelu": True,
        "vision.image_size": SIDE,
        "vision.patch_size": PATCH[kind],
        "vision.image_mean": [0.5, 0.5, 0.5],
        "vision.image_std": [0.5, 0.5, 0.5],
        **_sizes("vision"),
        **own,
    }


def _sound() -> dict[str, Setting]:
    return {
        "has_audio_encoder": True,
        "audio.num_mel_bins": N_MELS,
        "audio.projector.stack_factor": STACK,
        **_sizes("audio"),
    }


def _encoder(at: str, kind: Projector) -> Iterator[Tensor]:
    for layer in range(N_LAYERS):
        block = f"{at}.blk.{layer}"
        for name in ("ln1", "ln2"):
            yield norm(f"{block}.{name}", WIDTH)
            yield bias(f"{block}.{name}", WIDTH)
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            yield matrix(f"{block}.{name}", WIDTH, WIDTH, gain=2.0)
            if (kind, name) != ("sound", "attn_k"):
                yield bias(f"{block}.{name}", WIDTH)
        yield matrix(f"{block}.ffn_up", N_FF, WIDTH)
        yield bias(f"{block}.ffn_up", N_FF)
        yield matrix(f"{block}.ffn_down", WIDTH, N_FF)
        yield bias(f"{block}.ffn_down", WIDTH)
    yield norm(f"{at}.post_ln", WIDTH)
    yield bias(f"{at}.post_ln", WIDTH)


def _ends(kind: Projector) -> Iterator[Tensor]:
    """Yield what is before and after the layers."""
    if kind == "sound":
        yield from _sound_ends()
        return
    patch = PATCH[kind]
    n_patches = (SIDE // patch) ** 2
    name = "v.patch_embd.weight"
    for each in (name, f"{name}.1") if kind == "image-mrope" else (name,):
        yield Tensor(each, (WIDTH, 3, patch, patch), std=1 / (3 * patch * patch) ** 0.5)
    if kind == "image-mrope":
        yield matrix("mm.0", 4 * WIDTH, 4 * WIDTH)
        yield bias("mm.0", 4 * WIDTH)
        yield Tensor("mm.2.weight", (N_EMBD, 4 * WIDTH), std=STD / 4)
        yield Tensor("mm.2.bias", (N_EMBD,), std=STD / 4)
    elif kind == "image-whole":
        yield Tensor("v.position_embd.weight", (n_patches, WIDTH), std=0.5)
        yield Tensor("mm.input_projection.weight", (WIDTH, N_EMBD), std=STD / WIDTH**0.5)
        yield norm("mm.soft_emb_norm", WIDTH)
    else:
        yield Tensor("v.class_embd", (WIDTH,), std=1.0)
        yield Tensor("v.position_embd.weight", (n_patches + 1, WIDTH), std=0.5)
        yield norm("v.pre_ln", WIDTH)
        yield bias("v.pre_ln", WIDTH)
        yield matrix("mm.0", N_EMBD, WIDTH)
        yield bias("mm.0", N_EMBD)
        yield Tensor("mm.2.weight", (N_EMBD, N_EMBD), std=STD / 4)
        yield Tensor("mm.2.bias", (N_EMBD,), std=STD / 4)


def _sound_ends() -> Iterator[Tensor]:
    yield Tensor("a.position_embd.weight", (N_FRAMES, WIDTH), std=0.5)
    for n, size in ((1, N_MELS), (2, WIDTH)):
        yield Tensor(f"a.conv1d.{n}.weight", (WIDTH, size, 3), std=1 / (3 * size) ** 0.5)
        yield Tensor(f"a.conv1d.{n}.bias", (WIDTH, 1), std=0.1)
    yield norm("mm.a.norm_pre", STACK * WIDTH)
    yield matrix("mm.a.mlp.1", 2 * WIDTH, STACK * WIDTH)
    yield norm("mm.a.norm_mid", WIDTH)
    yield Tensor("mm.a.mlp.2.weight", (N_EMBD, WIDTH), std=STD / WIDTH**0.5)
