"""Little-endian values from the front of a GGUF file, in pieces of bounded size."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

from edged.errors import GgufError

PIECE_BYTES = 1 << 20
_MAX_STRINGS = 1 << 23  # of one array; the largest vocabularies have 2^18 tokens
_MAX_NAME_BYTES = 1 << 10

# types of metadata → codes of `struct`; None: a string, an array
SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")))


class Reader:
    """Reads `file`, which has `size` bytes. All methods raise GgufError and OSError."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self.n_kept = 0  # numbers of arrays, by whoever reads
        self._file = file
        self._piece = b""
        self._at = 0  # in the piece
        self._start = 0  # of the piece in the file

    @property
    def position(self) -> int:
        """Bytes that have been read or skipped."""
        return self._start + self._at

    @property
    def left(self) -> int:
        """Bytes behind them."""
        return self.size - self.position

    def take(self, n_bytes: int) -> bytes:
        """Return the next bytes; raises GgufError when there are not so many."""
        self._need(n_bytes)
        self._at += n_bytes
        return self._piece[self._at - n_bytes : self._at]

    def number(self, code: str) -> Any:
        """Return the next value, of this code of `struct`."""
        form = _FORMS[code]
        self._need(form.size)
        (value,) = form.unpack_from(self._piece, self._at)
        self._at += form.size
        return value

    def count(self, code: str, limit: int, what: str) -> int:
        """Return the next value unless it is beyond all sense; `what` is counted."""
        value = int(self.number(code))
        if value > limit:
            raise GgufError(f"is damaged: it claims {value} {what}")
        return value

    def name(self, what: str) -> str:
        """Return the next string, a short one."""
        return self.take(self.count("Q", _MAX_NAME_BYTES, f"bytes in {what}")).decode(
            errors="replace"
        )

    def skip(self, n_bytes: int) -> None:
        """Go on behind the next bytes."""
        if n_bytes > self.left:
            raise truncated(self.size, self.position + n_bytes)
        if n_bytes <= len(self._piece) - self._at:
            self._at += n_bytes
            return
        self._start, self._at, self._piece = self.position + n_bytes, 0, b""
        self._file.seek(self._start)

    def skip_strings(self, count: int) -> None:
        """Skip `count` strings; the inner loop is all that a large vocabulary costs."""
        if count > _MAX_STRINGS:
            raise GgufError(f"is damaged: it claims a list of {count} strings")
        unpack_length = _FORMS["Q"].unpack_from
        while count:
            self._need(8)
            piece, at = self._piece, self._at
            last = len(piece) - 8
            while count and at <= last:
                at += 8 + unpack_length(piece, at)[0]
                count -= 1
            if at > len(piece):  # the string goes on beyond the piece
                self._at = len(piece)
                self.skip(at - len(piece))
            else:
                self._at = at

    def _need(self, n_bytes: int) -> None:
        if len(self._piece) - self._at >= n_bytes:
            return
        if n_bytes > self.left:
            raise truncated(self.size, self.position + n_bytes)
        rest = self._piece[self._at :]
        self._start, self._at = self.position, 0
        while len(rest) < n_bytes:
            more = self._file.read(max(PIECE_BYTES, n_bytes - len(rest)))
            if not more:
                raise truncated(self._start + len(rest), self._start + n_bytes)
            rest += more
        self._piece = rest


_FORMS = {code: struct.Struct("<" + code) for code in SCALARS.values() if code}


def truncated(has: int, needs: int) -> GgufError:
    """Return the error of a file that ends too early."""
    return GgufError(
        f"is truncated: it has {has} bytes and needs {needs} at least; copy or download it again"
    )
