"""What a model serves, and who may ask it for what."""

from __future__ import annotations

from edged.config import Model
from edged.errors import WrongModelKind
from edged.protocol import Embed, Generate, Kind, Pooling, Render, Request, Rerank
from edged.store.gguf import GgufHeader

# Requests of an embeddings or rerank model that are computed at the same time where nobody says
# how many: they share a batch and cost no memory of their own.
PARALLEL = 32

_NOUNS: dict[Kind, str] = {
    "chat": "a chat model",
    "embeddings": "an embeddings model",
    "rerank": "a rerank model",
}


class UnfitError(Exception):
    """The file cannot serve what it is asked for; the message says why and what to do."""


def kind_of(model: Model, header: GgufHeader) -> tuple[Kind, Pooling | None]:
    """Return what the model serves and how it pools, which a chat model does not.

    Raises UnfitError.
    """
    kind = header.kind if model.kind == "auto" else model.kind
    pooling: Pooling | None = model.llamacpp.pooling
    if kind == "embeddings":
        pooling = pooling or header.pooling
        if pooling in (None, "rank"):
            raise UnfitError(
                "its file does not say how it pools: look it up at the model's maker and set "
                'llamacpp.pooling = "mean", "cls" or "last"'
            )
        return kind, pooling
    if pooling:
        raise UnfitError(
            f'llamacpp.pooling = "{pooling}" is for embeddings, and it is {_NOUNS[kind]}: '
            'remove it, or set kind = "embeddings"'
        )
    if kind == "rerank":
        if not header.classifier:
            raise UnfitError("it cannot rerank: its file has no classifier head")
        return kind, "rank"
    if header.kind != "chat":
        raise UnfitError(f'kind = "chat", but its file is {_NOUNS[header.kind]}: remove `kind`')
    return kind, None


def check(kind: Kind | None, request: Request) -> None:
    """Raise WrongModelKind when a model of this kind cannot answer the request.

    None: an upstream, which knows best itself, or a model that cannot run.
    """
    wanted: Kind | None = None
    if isinstance(request, Generate | Render):
        wanted = "chat"
    elif isinstance(request, Embed):
        wanted = "embeddings"
    elif isinstance(request, Rerank):
        wanted = "rerank"
    if kind and wanted and kind != wanted:
        raise WrongModelKind.of(kind)
