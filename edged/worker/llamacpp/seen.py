"""A prompt with images and sounds in it: its places, and what has to be encoded for them.

In `Sequence.tokens` a place of an image has a number that no token has and that follows from the
image's content, so that a prefix with the same image is the same prefix. Nothing crosses from one
image to another that differs in a single pixel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from edged.errors import InvalidRequest
from edged.protocol import Media
from edged.worker.llamacpp.multimodal import Piece, Projector
from edged.worker.llamacpp.sequence import Span
from edged.worker.llamacpp.vocabulary import Vocab

Run = list[tuple[str, bool]]  # parts of a text, True: with control tokens in it

_HASH_BYTES = 16
_PLACE_BITS = 32


class Seen(NamedTuple):
    """`spans` tell where in `tokens` each of the `pieces` stands."""

    tokens: list[int]
    spans: tuple[Span, ...]
    pieces: tuple[Piece, ...]


def see(
    runs: list[Run | int],
    media: list[Media],
    *,
    projector: Projector,
    vocab: Vocab,
    tokenize: Callable[[Run], list[int]],
    wrap: bool,
    batch: int,
) -> Seen:
    """Return the places of a prompt in runs of text, with numbers of `media` between them.

    `batch`: places that fit into one step. Raises InvalidRequest.
    """
    tokens = list(vocab.head) if wrap else []
    spans: list[Span] = []
    pieces: list[Piece] = []
    for run in runs:
        if not isinstance(run, int):
            tokens += tokenize(run)
            continue
        for piece in projector.read(media[run]):
            if isinstance(piece, list):
                tokens += piece
                continue
            if piece.whole and piece.n > batch:
                raise InvalidRequest(
                    f"an image takes {piece.n} tokens, which this model computes in one piece, and "
                    f"`llamacpp.batch` is {batch}; raise it, or send a smaller image",
                    param="messages",
                )
            spans.append(Span(len(tokens), piece.n, piece.n_positions, piece.whole))
            pieces.append(piece)
            tokens += _places(piece)
    if wrap:
        tokens += vocab.tail
    if spans and spans[-1].end == len(tokens):
        raise InvalidRequest(
            "the prompt ends with an image or a sound; it must end with text", param="messages"
        )
    return Seen(tokens, tuple(spans), tuple(pieces))


def _places(piece: Piece) -> range:
    content = int.from_bytes(hashlib.sha256(piece.key).digest()[:_HASH_BYTES], "little")
    first = (1 << 8 * _HASH_BYTES | content) << _PLACE_BITS  # beyond every vocabulary
    return range(first, first + piece.n)
