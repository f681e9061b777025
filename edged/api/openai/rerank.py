"""`POST /v1/rerank`, in the shape of Jina and Cohere: wire request → Rerank → wire response."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from litestar import Request, post
from litestar.types import ASGIApp
from msgspec import UNSET, Meta, Struct, UnsetType

from edged import errors
from edged.api import body
from edged.api.call import Json, call
from edged.api.entry import Addressed, Entry
from edged.api.openai.embeddings import Usage
from edged.api.openai.parameters import check_names
from edged.protocol import Ranked, Rerank

MOST_DOCUMENTS = 2048

# Known names that nothing here honours, each with the values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...] | None] = {
    # Cohere
    "max_chunks_per_doc": (),
    "max_tokens_per_doc": (),
    "priority": (0,),
    "rank_fields": ([], ["text"]),
    # Jina, text-embeddings-inference, vLLM
    "return_embeddings": (False,),
    "return_text": (False,),
    "raw_scores": (False,),
    "truncate": (False,),
    "truncate_prompt_tokens": (),
    "truncation": (False,),
}


class Document(Struct, forbid_unknown_fields=True):
    """A text."""

    text: str


class RerankRequest(Addressed, kw_only=True):
    """Body of the request."""

    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=MOST_DOCUMENTS)]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None
    user: str | None = None


class Result(Struct, omit_defaults=True):
    """One document. `index`: its place in the request."""

    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class RerankReply(Struct):
    """Body of the reply, the best document first."""

    id: str
    model: str
    results: list[Result]
    usage: Usage
    object: str = "list"


_PATHS = ["/v1/rerank", "/v1/reranking", "/v2/rerank", "/rerank", "/reranking"]


@post(_PATHS, status_code=200)
async def create(request: Request[Any, Any, Any]) -> ASGIApp:
    """Sort documents by how well they answer a query."""
    entry = await Entry.of(request)
    if (upstream := entry.upstream("/rerank")) is not None:
        return upstream
    entry.exchange.ignored_fields = check_names(entry.raw, RerankRequest, REFUSED)
    wire = body.convert(entry.raw, RerankRequest)
    texts = [each if isinstance(each, str) else each.text for each in wire.documents]
    for i, text in enumerate(texts):
        if not text:
            raise errors.InvalidRequest(f"`documents[{i}]` is empty", param=f"documents[{i}]")
    found = await call(request, entry.model, Rerank(wire.query, texts), Ranked)
    results = [
        Result(i, score, Document(texts[i]) if wire.return_documents else UNSET)
        for i, score in enumerate(found.scores)
    ]
    results.sort(key=lambda result: -result.relevance_score)  # equal ones stay in their order
    return Json(
        RerankReply(
            id=f"rerank-{secrets.token_hex(12)}",
            model=entry.model,
            results=results[: wire.top_n],
            usage=Usage(found.prompt_tokens, found.prompt_tokens),
        )
    )
