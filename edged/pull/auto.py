"""`:auto`: the quantisation that fits this box, chosen before any weights are fetched."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO, cast

from edged.config import Config
from edged.errors import GgufError, StoreError, Unreachable
from edged.hardware import Hardware
from edged.plan import kind as kinds
from edged.plan import quantisation
from edged.plan.model import budget_bytes
from edged.plan.quantisation import NothingFitsError, Quantisation
from edged.store.gguf import GgufHeader, read_stream
from edged.store.listing import RemoteFile
from edged.store.resolution import Pick
from edged.store.selection import Candidate
from edged.store.web import Patience, Web

_PIECE_BYTES = 1 << 20


def picker(config: Config, hardware: Callable[[], Hardware]) -> Callable[[Web, str], Pick]:
    """Return what chooses for the models of `config`; `hardware` is asked only when needed."""

    def for_model(web: Web, model: str) -> Pick:
        def pick(found: list[Candidate], headers: dict[str, str]) -> tuple[Candidate, str]:
            smallest = found[-1].files[0]
            header = _read_remotely(web, smallest, headers)
            sizes = [Quantisation(each.tag, each.bytes) for each in found]
            try:
                place, why = quantisation.best(
                    sizes, header, config.models[model], budget_bytes(config, hardware())
                )
            except (NothingFitsError, kinds.UnfitError) as error:
                raise StoreError(str(error)) from None
            return found[place], why

        return pick

    return for_model


def _read_remotely(web: Web, file: RemoteFile, headers: dict[str, str]) -> GgufHeader:
    """Read the header of a GGUF on a server, a MiB at a time; raises StoreError."""
    if file.bytes is None:
        raise StoreError(f"{file.path}: the server does not tell its size")
    try:
        ranges = _Ranges(web, file, headers)
        return read_stream(cast("BinaryIO", ranges), file.bytes)
    except GgufError as error:
        raise StoreError(f"{file.path} {error.message}") from None


class _Ranges(io.RawIOBase):
    """A file on a server, as one that can be read from any place."""

    def __init__(self, web: Web, file: RemoteFile, headers: dict[str, str]) -> None:
        self._web = web
        self._file = file
        self._headers = headers
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == io.SEEK_SET
        self._at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        assert size > 0
        last = min(self._at + max(size, _PIECE_BYTES), self._file.bytes or 0) - 1
        asked = self._headers | {"range": f"bytes={self._at}-{last}"}
        patience = Patience(self._web.sleep)
        while True:
            try:
                with self._web.stream(self._file.url, asked) as response:
                    piece = b""
                    for more in response.iter_raw():
                        piece += more
                        if len(piece) > last - self._at:  # a server that knows no ranges
                            break
                break
            except Unreachable as error:
                patience.after(error)
        if response.status_code != 206 and self._at:  # noqa: PLR2004 - Partial Content
            raise StoreError(
                f"{response.url.host} cannot give parts of a file, which `:auto` needs: "
                "name a quantisation"
            )
        piece = piece[: last - self._at + 1]
        self._at += len(piece)
        return piece
