"""Images and sounds for the tiny projectors, and mtmd's own way of running them."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from edged.protocol import Launch, Media, Messages
from edged.worker.llamacpp.runner import Runner
from tests.llamacpp.support import launch
from tests.models import projector, tiny
from tests.models.projector import Projector
from tests.models.tiny import Trait

TEXT_MODEL: dict[Projector, Trait] = {
    "image": "plain",
    "image-tiles": "plain",
    "image-whole": "swa",
    "image-mrope": "mrope",
    "sound": "plain",
}
IMAGES: tuple[Projector, ...] = ("image", "image-tiles", "image-whole", "image-mrope")


def seeing(kind: Projector, **more: Any) -> Launch:
    """The launch of a tiny model with this projector."""
    plain = launch(tiny(TEXT_MODEL[kind]), **more)
    assert plain.llamacpp
    settings = msgspec.structs.replace(
        plain.llamacpp,
        mmproj=str(projector(kind)),
        media=("audio",) if kind == "sound" else ("image",),
    )
    return msgspec.structs.replace(plain, llamacpp=settings)


def picture(seed: int = 1, width: int = 100, height: int = 60) -> Media:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Media("image", pixels.tobytes(), width=width, height=height)


def noise(seed: int = 1, seconds: float = 1.0, rate: int = 16000) -> Media:
    samples = np.random.default_rng(seed).integers(-9000, 9000, int(seconds * rate), np.int16)
    return Media("audio", samples.tobytes(), rate=rate, channels=1, sample_bytes=2)


def some(kind: Projector, seed: int = 1) -> Media:
    return noise(seed) if kind == "sound" else picture(seed)


def look(*content: str | Media) -> Messages:
    """A user's message with text, images and sounds in order."""
    media = [each for each in content if isinstance(each, Media)]
    parts = [
        {"type": each.kind} if isinstance(each, Media) else {"type": "text", "text": each}
        for each in content
    ]
    return Messages([{"role": "user", "content": parts}], media=media)


@contextlib.contextmanager
def opened(launched: Launch) -> Iterator[Runner]:
    runner = Runner(launched, frozenset(), lambda _: True)
    try:
        yield runner
    finally:
        runner.close()


class Mtmd:
    """A conversation evaluated by `mtmd_helper_eval_chunks`, then greedily by hand."""

    def __init__(self, runner: Runner) -> None:
        assert runner.projector
        self._runner = runner
        self._mtmd = runner.projector._mtmd
        self._context = runner.projector._context

    def read(self, text: str, *media: Media) -> int:
        """Evaluate a prompt with mtmd's markers in it as sequence 0; return its positions."""
        mtmd, runner = self._mtmd, self._runner
        assert runner.projector
        bitmaps = [runner.projector._bitmap(each) for each in media]
        chunks = mtmd.mtmd_input_chunks_init()
        data = text.encode()
        wire = mtmd.mtmd_input_text(data, len(data), True, True)
        array = (ctypes.c_void_p * len(bitmaps))(*bitmaps)
        assert mtmd.mtmd_tokenize(self._context, chunks, wire, array, len(bitmaps)) == 0
        self.n_places = mtmd.mtmd_helper_get_n_tokens(chunks)
        n = ctypes.c_int32(0)
        code = mtmd.mtmd_helper_eval_chunks(
            self._context, runner._context, chunks, 0, 0, runner.batch, True, ctypes.byref(n)
        )
        assert code == 0
        mtmd.mtmd_input_chunks_free(chunks)
        for bitmap in bitmaps:
            mtmd.mtmd_bitmap_free(bitmap)
        return n.value

    def write(self, position: int, n: int) -> list[int]:
        """Return the `n` likeliest tokens one after the other."""
        tokens: list[int] = []
        row = self.row()
        while len(tokens) < n:
            tokens.append(int(row.argmax()))
            self._runner.decode([(0, position, tokens[-1:], True)])
            position += 1
            row = self._runner.rows()[0]
        return tokens

    def row(self) -> np.ndarray[Any, Any]:
        """Return the logits after the prompt."""
        lib = self._runner._lib
        pointer = lib.llama_get_logits_ith(self._runner._context, -1)
        return np.ctypeslib.as_array(pointer, (self._runner.vocab.n_tokens,)).copy()


MARKER = "<__media__>"
