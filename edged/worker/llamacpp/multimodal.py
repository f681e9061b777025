"""Images and sounds through mtmd, llama.cpp's library for projectors.

A projector turns one image or sound into pieces: tokens (such as `<start_of_image>`) and places
that hold vectors instead of tokens. Reading (cutting up and scaling) may happen in any thread;
encoding, which takes seconds, in one thread at a time. The vectors then go through the model like
tokens: `Runner.decode_vectors`. Pixels and samples come in as plain numbers: nothing here parses
a file but the projector's own.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edged.errors import InternalError, InvalidRequest, ShuttingDown
from edged.protocol import Media
from edged.worker.engine import EngineMissingError
from edged.worker.llamacpp import library
from edged.worker.llamacpp.sound import to_mono

Vectors = npt.NDArray[np.float32]

_TEXT = 0  # mtmd_input_chunk_type
_IMAGE = 1
_KEPT_BYTES = 64 << 20  # of encoded vectors
_SECTIONS = 4  # of a position in models with M-RoPE: t, y, x and one that is not used


class Piece(NamedTuple):
    """A run of places that hold an image, a part of one, or a piece of sound."""

    key: bytes  # of its content: equal keys have equal vectors
    n: int  # places
    n_positions: int  # that they take; fewer than `n` where an image has two dimensions
    whole: bool  # its places see each other in both directions: computed in one piece
    #: (4, n) positions where the piece begins at 0, for M-RoPE; None: one after the other.
    layout: npt.NDArray[np.int32] | None
    #: (4, 1): 1 where a position moves with the piece's beginning.
    moves: npt.NDArray[np.int32] | None = None
    chunk: int | None = None  # mtmd's, alive as long as `owner`
    owner: Any = None

    def positions(self, first: int, start: int, n: int) -> npt.NDArray[np.int32]:
        """Return the positions of `n` places from `start` on, of a piece that begins at `first`."""
        if self.layout is None or self.moves is None:
            return np.arange(first + start, first + start + n, dtype=np.int32)
        here = self.layout[:, start : start + n] + np.int32(first) * self.moves
        return np.ascontiguousarray(here, np.int32)


class _Chunks:
    """mtmd's list of chunks, freed with the last piece that points into it."""

    def __init__(self, mtmd: Any) -> None:
        self.pointer = mtmd.mtmd_input_chunks_init()
        weakref.finalize(self, mtmd.mtmd_input_chunks_free, self.pointer)


class Projector:
    """The projector of one loaded model. Raises BadModelError, EngineMissingError, MemoryError."""

    def __init__(self, lib: Any, model: Any, path: Path, *, threads: int) -> None:
        self._mtmd = mtmd = _open()
        params = mtmd.mtmd_context_params_default()
        params.use_gpu = False
        params.print_timings = False
        params.n_threads = threads
        library.LOG.tail.clear()
        self._context = mtmd.mtmd_init_from_file(os.fsencode(path), model, params)
        if not self._context:
            raise library.load_error(f"llama.cpp cannot load the projector {path}")
        self.images: bool = mtmd.mtmd_support_vision(self._context)
        self.sounds: bool = mtmd.mtmd_support_audio(self._context)
        self._rate: int = mtmd.mtmd_get_audio_sample_rate(self._context)
        self._mrope: bool = mtmd.mtmd_decode_use_mrope(self._context)
        self._width: int = lib.llama_model_n_embd_inp(model)
        self._reading = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._kept: OrderedDict[bytes, Vectors] = OrderedDict()  # the longest unused first
        self.n_encoded = 0  # pieces since the start
        self.busy_since_s: float | None = None  # on the monotonic clock: a piece is being encoded

    # ── reading: any thread ──

    def read(self, media: Media) -> list[list[int] | Piece]:
        """Return tokens and pieces of an image or sound, in order.

        Raises InvalidRequest for what this projector cannot take.
        """
        if media.kind not in self.takes:
            raise InvalidRequest(
                f"this model's projector takes {' and '.join(self.takes)}, not {media.kind}",
                param="messages",
            )
        with self._reading:
            return self._read(media)

    def _read(self, media: Media) -> list[list[int] | Piece]:
        if self._context is None:
            raise ShuttingDown("the model is being stopped; try again")
        form = (media.kind, media.width, media.rate, media.channels, media.sample_bytes)
        key = hashlib.sha256(repr(form).encode())
        key.update(media.data)
        mtmd, bitmap = self._mtmd, self._bitmap(media)
        try:
            chunks = _Chunks(mtmd)
            part = mtmd.mtmd_input_part(bitmap=bitmap)
            parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
            code = mtmd.mtmd_tokenize_from_parts(self._context, chunks.pointer, parts, 1, False)
        finally:
            mtmd.mtmd_bitmap_free(bitmap)
        if code != 0:
            reason = library.LOG.tail[-1] if library.LOG.tail else f"code {code}"
            raise InvalidRequest(
                f"this model's projector cannot read the {media.kind}: {reason}", param="messages"
            )
        n = mtmd.mtmd_input_chunks_size(chunks.pointer)
        return [self._piece(chunks, i, key.digest()) for i in range(n)]

    @property
    def takes(self) -> tuple[str, ...]:
        """What it turns into places."""
        return ("image",) * self.images + ("audio",) * self.sounds

    def _bitmap(self, media: Media) -> Any:
        if media.kind == "audio":
            samples = to_mono(media, self._rate)
            floats = samples.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            return self._mtmd.mtmd_bitmap_init_from_audio(len(samples), floats)
        assert len(media.data) == media.width * media.height * 3, "rows of RGB"
        pixels = np.frombuffer(media.data, np.uint8)
        pointer = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return self._mtmd.mtmd_bitmap_init(media.width, media.height, pointer)

    def _piece(self, chunks: _Chunks, index: int, key: bytes) -> list[int] | Piece:
        mtmd = self._mtmd
        chunk = mtmd.mtmd_input_chunks_get(chunks.pointer, index)
        kind = mtmd.mtmd_input_chunk_get_type(chunk)
        if kind == _TEXT:
            n_tokens = ctypes.c_size_t(0)
            tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(n_tokens))
            return [int(token) for token in tokens[: n_tokens.value]]
        n = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        layout = moves = None
        if self._mrope:
            layout = self._layout(chunk, kind, n, 0)
            moves = self._layout(chunk, kind, n, 1)[:, :1] - layout[:, :1]
        return Piece(
            key=key + index.to_bytes(4, "little"),
            n=n,
            n_positions=mtmd.mtmd_input_chunk_get_n_pos(chunk),
            whole=mtmd.mtmd_decode_use_non_causal(self._context, chunk),
            layout=layout,
            moves=moves,
            chunk=chunk,
            owner=chunks,
        )

    def _layout(self, chunk: Any, kind: int, n: int, first: int) -> npt.NDArray[np.int32]:
        mtmd = self._mtmd
        if kind != _IMAGE:
            return np.tile(np.arange(first, first + n, dtype=np.int32), (_SECTIONS, 1))
        places = (mtmd.mtmd_decoder_pos * n)()
        image = mtmd.mtmd_input_chunk_get_tokens_image(chunk)
        mtmd.mtmd_helper_image_get_decoder_pos(image, first, places)
        table = np.frombuffer(places, np.uint32).reshape(n, _SECTIONS).astype(np.int32)
        return np.ascontiguousarray(table[:, [0, 2, 1, 3]].T)  # t, x, y, z → t, y, x, z

    # ── encoding: one thread at a time ──

    def encode(
        self, pieces: Sequence[Piece], wanted: Callable[[], bool] = lambda: True
    ) -> list[Vectors]:
        """Return the vectors of each piece: (n, width of the model's input), float32.

        Takes up to seconds a piece; when `wanted` turns False it returns early, with fewer.
        Raises InternalError.
        """
        found: list[Vectors] = []
        for piece in pieces:
            with self._one_at_a_time:
                if not wanted():
                    return found
                vectors = self._kept.get(piece.key)
                if vectors is None:
                    vectors = self._encode(piece)
                    self._keep(piece.key, vectors)
                else:
                    self._kept.move_to_end(piece.key)
            found.append(vectors)
        return found

    def _encode(self, piece: Piece) -> Vectors:
        if self._context is None:
            raise ShuttingDown("the model is being stopped; try again")
        self.busy_since_s = time.monotonic()
        code = self._mtmd.mtmd_encode_chunk(self._context, piece.chunk)
        self.busy_since_s = None
        if code != 0:
            reason = library.LOG.tail[-1] if library.LOG.tail else "it gave no reason"
            raise InternalError(f"the projector failed: {reason}")
        self.n_encoded += 1
        out = self._mtmd.mtmd_get_output_embd(self._context)
        return np.ctypeslib.as_array(out, (piece.n, self._width)).copy()

    def _keep(self, key: bytes, vectors: Vectors) -> None:
        self._kept[key] = vectors
        n_bytes = sum(each.nbytes for each in self._kept.values())
        while n_bytes > _KEPT_BYTES and len(self._kept) > 1:
            n_bytes -= self._kept.popitem(last=False)[1].nbytes

    def close(self) -> None:
        """Free it, as soon as it is not at work; waits for the piece that is being encoded."""
        with self._one_at_a_time, self._reading:
            if self._context is not None:
                self._mtmd.mtmd_free(self._context)
                self._context = None


def _open() -> Any:
    try:
        mtmd: Any = importlib.import_module("llama_cpp.mtmd_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineMissingError(
            f"this llama-cpp-python was built without mtmd, which images and sounds need ({error})"
        ) from error
    mtmd.mtmd_log_set(library.LOG.callback, None)
    mtmd.mtmd_helper_log_set(library.LOG.callback, None)
    return mtmd
