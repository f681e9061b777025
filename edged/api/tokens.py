"""Texts and tokens of a model without running it, in llama-server's shapes."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, post
from litestar.types import ASGIApp
from msgspec import Meta

from edged.api import body, media
from edged.api.call import Json, call
from edged.api.entry import Addressed, Entry
from edged.api.openai import chat
from edged.api.openai.parameters import check_names
from edged.api.openai.schema import ChatRequest
from edged.protocol import (
    Detokenize,
    Detokenized,
    Messages,
    Render,
    Rendered,
    Tokenize,
    Tokenized,
)

_TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class TokenizeRequest(Addressed, kw_only=True):
    """Body of `POST /tokenize`."""

    content: str
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(Addressed, kw_only=True):
    """Body of `POST /detokenize`."""

    tokens: list[_TokenId]


@post(["/tokenize", "/v1/tokenize"], status_code=200)
async def tokenize(request: Request[Any, Any, Any]) -> ASGIApp:
    """Return the tokens of a text, with their spelling if wanted."""
    entry = await Entry.of(request, sole=True)
    if (upstream := entry.upstream("/tokenize", root=True)) is not None:
        return upstream
    entry.exchange.ignored_fields = check_names(entry.raw, TokenizeRequest)
    wire = body.convert(entry.raw, TokenizeRequest)
    wanted = Tokenize(
        wire.content,
        add_special=bool(wire.add_special),
        parse_special=wire.parse_special is not False,
    )
    found = await call(request, entry.model, wanted, Tokenized)
    if not wire.with_pieces:
        return Json({"tokens": found.tokens})
    pairs = zip(found.tokens, found.pieces, strict=True)
    return Json({"tokens": [{"id": token, "piece": _spelt(piece)} for token, piece in pairs]})


def _spelt(piece: bytes) -> str | list[int]:
    """Return a piece as text, or as its bytes when it is only a part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


@post(["/detokenize", "/v1/detokenize"], status_code=200)
async def detokenize(request: Request[Any, Any, Any]) -> ASGIApp:
    """Return the text of tokens."""
    entry = await Entry.of(request, sole=True)
    if (upstream := entry.upstream("/detokenize", root=True)) is not None:
        return upstream
    entry.exchange.ignored_fields = check_names(entry.raw, DetokenizeRequest)
    wire = body.convert(entry.raw, DetokenizeRequest)
    found = await call(request, entry.model, Detokenize(wire.tokens), Detokenized)
    return Json({"content": found.text})


@post(["/apply-template", "/v1/apply-template"], status_code=200)
async def apply_template(request: Request[Any, Any, Any]) -> ASGIApp:
    """Return the prompt that a chat request becomes; `add_generation_prompt` may be false."""
    entry = await Entry.of(request, sole=True)
    if (upstream := entry.upstream("/apply-template", root=True)) is not None:
        return upstream
    wire = chat.read(entry)
    begins = wire.add_generation_prompt is not False or wire.continue_final_message
    if not begins:
        wire.add_generation_prompt = None
    prompt = await _shown(entry, wire)
    if not begins:
        kwargs = prompt.template_kwargs | {"add_generation_prompt": False}
        prompt = msgspec.structs.replace(prompt, template_kwargs=kwargs)
    found = await call(request, entry.model, Render(prompt), Rendered)
    return Json({"prompt": found.text})


@post("/v1/chat/completions/input_tokens", status_code=200)
async def input_tokens(request: Request[Any, Any, Any]) -> ASGIApp:
    """Count the prompt tokens that the same request to `/v1/chat/completions` would have."""
    entry = await Entry.of(request)
    if (upstream := entry.upstream("/chat/completions/input_tokens")) is not None:
        return upstream
    prompt = await _shown(entry, chat.read(entry))
    found = await call(request, entry.model, Render(prompt), Rendered)
    return Json({"object": "response.input_tokens", "input_tokens": found.n_tokens})


async def _shown(entry: Entry, wire: ChatRequest) -> Messages:
    """Return what the template gets: no tools when none may be called."""
    prompt, choice = chat.to_prompt(wire)
    if choice.mode == "none":
        prompt = msgspec.structs.replace(prompt, tools=None)
    return await media.load(entry, prompt)
