"""`GET /v1/models` and `/v1/models/{id}`: what can be asked for, under every name it has."""

from __future__ import annotations

import time
from typing import Any

from litestar import HttpMethod, Request, Response, route
from msgspec import Struct

from edged.api.box import Box, box_of
from edged.plan import ModelPlan
from edged.protocol import Kind
from edged.status import ModelStatus

_PATH = "/v1/models"
# An upstream's kind is not known; what it answers is up to it.
_CAPABILITIES: dict[Kind | None, tuple[str, ...]] = {
    None: ("chat", "completions"),
    "chat": ("chat", "completions"),
    "embeddings": ("embeddings",),
    "rerank": ("rerank",),
}
_STARTED = int(time.time())


class Edged(Struct):
    """What only edged says about a model."""

    state: str
    engine: str | None
    why: tuple[str, ...]
    context: int
    modalities: tuple[str, ...] = ("text",)
    capabilities: tuple[str, ...] = ("chat", "completions")
    aliases: tuple[str, ...] = ()
    alias_of: str | None = None
    error: str | None = None


class Model(Struct):
    """OpenAI's model object. `created` is when this daemon started."""

    id: str
    edged: Edged
    created: int = _STARTED
    object: str = "model"
    owned_by: str = "edged"


class ModelList(Struct):
    """Body of the list."""

    data: list[Model]
    object: str = "list"


@route(_PATH, http_method=[HttpMethod.GET, HttpMethod.HEAD], sync_to_thread=False)
def index(request: Request[Any, Any, Any]) -> Response[ModelList]:
    """List every configured model, and its aliases as models of their own."""
    box = box_of(request)
    states = _states(box)
    names = box.plan.names
    return _json(ModelList([_model(name, box.plan.resolve(name), states) for name in names]))


@route(
    _PATH + "/{model_id:path}",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    sync_to_thread=False,
)
def show(request: Request[Any, Any, Any]) -> Response[Model]:
    """Show one model; its name or alias may contain slashes. Raises ModelNotFound."""
    box = box_of(request)
    name = request.scope["path"].removeprefix(_PATH + "/")
    return _json(_model(name, box.plan.resolve(name), _states(box)))


def _states(box: Box) -> dict[str, ModelStatus]:
    return {status.name: status for status in box.status().models}


def _model(name: str, plan: ModelPlan, states: dict[str, ModelStatus]) -> Model:
    model = plan.model
    status = states.get(model.name)  # absent in the instant between two configurations
    return Model(
        id=name,
        edged=Edged(
            state=status.state if status else "stopped",
            engine=plan.engine,
            why=plan.reasons,
            context=plan.context,
            modalities=("text", *plan.media),
            capabilities=_CAPABILITIES[plan.kind],
            aliases=model.aliases,
            alias_of=None if name == model.name else model.name,
            error=plan.refusal or (status.error if status else None),
        ),
    )


def _json(content: Any) -> Response[Any]:
    return Response(content, media_type="application/json", status_code=200)
