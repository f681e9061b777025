"""`POST /v1/embeddings`: wire request → Embed, Embedded → wire response."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, post
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Meta, Struct

from edged import errors
from edged.api import body
from edged.api.call import call
from edged.api.entry import Addressed, Entry
from edged.api.events import STALLED_CLIENT_S
from edged.api.openai.parameters import check_names
from edged.protocol import Embed, Embedded, Text, Tokens

MOST_INPUTS = 2048  # OpenAI's limit

# Known names that nothing here honours, each with the values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...] | None] = {
    # llama-server: 2 is Euclid's norm
    "embd_normalize": (2,),
    # vLLM
    "add_special_tokens": (True,),
    "normalize": (True,),
    "truncate_prompt_tokens": (),
    # Cohere, Jina, NIM
    "embedding_type": ("float",),
    "embedding_types": (["float"],),
    "input_type": (),
    "late_chunking": (False,),
    "normalized": (True,),
    "prompt_name": (),
    "task": (),
    "truncate": (False, "NONE"),
}

# JSON is written in pieces, between which other requests get their turn: so many take 3 ms.
_FLOATS_AT_ONCE = 1 << 15

_TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_encode = msgspec.json.Encoder().encode


class EmbeddingsRequest(Addressed, kw_only=True):
    """Body of the request."""

    input: str | Annotated[list[str | _TokenId | list[_TokenId]], Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    user: str | None = None


class Usage(Struct):
    """What was read; nothing is written."""

    prompt_tokens: int
    total_tokens: int


@post("/v1/embeddings", status_code=200)
async def create(request: Request[Any, Any, Any]) -> ASGIApp:
    """Turn texts into vectors."""
    entry = await Entry.of(request)
    if (upstream := entry.upstream("/embeddings")) is not None:
        return upstream
    entry.exchange.ignored_fields = check_names(entry.raw, EmbeddingsRequest, REFUSED)
    wire = body.convert(entry.raw, EmbeddingsRequest)
    wanted = Embed(to_inputs(wire.input, entry.plan.context), dimensions=wire.dimensions)
    found = await call(request, entry.model, wanted, Embedded)
    return _Vectors(entry.model, found, base64=wire.encoding_format == "base64")


def to_inputs(wire: str | list[str | int | list[int]], context: int) -> list[Text | Tokens]:
    """Return the inputs of a request: one text, one list of token ids, or a list of those.

    Raises InvalidRequest, and ContextLengthExceeded for more ids than the model takes.
    """
    if isinstance(wire, str) or isinstance(wire[0], int):
        return [_input(wire, context, "input")]
    if len(wire) > MOST_INPUTS:
        raise errors.InvalidRequest(
            f"`input` has {len(wire)} items, {MOST_INPUTS} are allowed; send several requests",
            param="input",
        )
    return [_input(each, context, f"input[{i}]") for i, each in enumerate(wire)]


def _input(wire: Any, context: int, param: str) -> Text | Tokens:
    if isinstance(wire, int) or (isinstance(wire, list) and not all(map(_is_id, wire))):
        raise errors.InvalidRequest(
            "`input`: token ids and texts stand side by side; a list of ids is one input, "
            "a list of texts or of lists is several",
            param="input",
        )
    if not wire:
        raise errors.InvalidRequest(f"`{param}` is empty", param=param)
    if isinstance(wire, str):
        return Text(wire)
    if len(wire) > context:
        raise errors.ContextLengthExceeded(
            f"`{param}` has {len(wire)} tokens; this model's maximum context length is "
            f"{context} tokens",
            param=param,
        )
    return Tokens(wire)


def _is_id(value: Any) -> bool:
    return isinstance(value, int)


class _Vectors:
    """ASGI application that writes the reply, piece by piece."""

    def __init__(self, model: str, found: Embedded, *, base64: bool) -> None:
        self._model = model
        self._found = found
        self._base64 = base64

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answer the request of this scope."""
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces(self._model, self._found, base64=self._base64):
            async with asyncio.timeout(STALLED_CLIENT_S):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def pieces(model: str, found: Embedded, *, base64: bool) -> Iterator[bytes]:
    """Yield the body of the reply."""
    vectors, n_tokens = found.vectors, found.prompt_tokens
    write = _as_base64 if base64 else _as_floats
    at_once = max(1, _FLOATS_AT_ONCE * 4 // max(1, len(vectors[0])))
    yield b'{"object":"list","data":['
    for start in range(0, len(vectors), at_once):
        comma = b"," if start else b""
        yield comma + b",".join(_items(vectors[start : start + at_once], start, write))
    usage = _encode(Usage(n_tokens, n_tokens))
    yield b'],"model":%b,"usage":%b}' % (_encode(model), usage)


def _items(vectors: Sequence[bytes], start: int, write: Any) -> Iterator[bytes]:
    for index, vector in enumerate(vectors, start):
        yield b'{"object":"embedding","index":%d,"embedding":%b}' % (index, write(vector))


def _as_floats(vector: bytes) -> bytes:
    # cast reads in this machine's order, which is little-endian on every machine llama.cpp knows
    return _encode(memoryview(vector).cast("f").tolist())


def _as_base64(vector: bytes) -> bytes:
    return b'"%b"' % binascii.b2a_base64(vector, newline=False)
