"""Messages as bytes: a 4-byte little-endian length, then one msgpack message of a tagged union."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from edged.protocol import ToDaemon, ToWorker

MAX_FRAME_BYTES = 256 << 20
_LENGTH_BYTES = 4
_LARGE_BYTES = 1 << 16  # of a frame


class FrameError(ValueError):
    """The stream does not carry frames of this protocol; close it."""


class Frames:
    """Encoder and incremental decoder of one direction pair.

    `incoming` is the union that this side receives (`ToWorker` or `ToDaemon`), in frames of at
    most `max_bytes`. Not thread-safe: one owner, the asyncio loop of its process.
    """

    def __init__(self, incoming: Any, *, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer = bytearray()

    def encode(self, message: ToWorker | ToDaemon) -> bytes:
        """Return the frame of `message`; raises FrameError above MAX_FRAME_BYTES."""
        body = self._encoder.encode(message)
        if len(body) > MAX_FRAME_BYTES:
            raise FrameError(f"frame of {len(body)} bytes, at most {MAX_FRAME_BYTES} allowed")
        return len(body).to_bytes(_LENGTH_BYTES, "little") + body

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take received bytes and yield every message that is now whole.

        Raises FrameError when the bytes cannot be a frame; nothing may be fed after that.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "little")
            if length > self._max_bytes:
                raise FrameError(f"frame of {length} bytes, at most {self._max_bytes} allowed")
            end = _LENGTH_BYTES + length
            if len(self._buffer) < end:
                return
            try:
                if length < _LARGE_BYTES:
                    message = self._decoder.decode(self._buffer[_LENGTH_BYTES:end])
                else:  # images: not copied first
                    with memoryview(self._buffer) as buffer, buffer[_LENGTH_BYTES:end] as body:
                        message = self._decoder.decode(body)
            except msgspec.MsgspecError as error:
                raise FrameError(f"not a message of this protocol: {error}") from error
            del self._buffer[:end]
            yield message
