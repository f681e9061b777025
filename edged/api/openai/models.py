"""`GET /v1/models` and `/v1/models/{id}`: what can be asked for, under every name it has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from litestar import HttpMethod, Request, Response, route
from msgspec import Struct

from edged.api.access import check_model
from edged.api.box import Box, box_of
from edged.api.exchange import Exchange
from edged.plan import ModelPlan, Plan
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
    adapters: tuple[str, ...] = ()
    adapter: str | None = None
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
    """List the models that the key may use, with aliases and adapters as models of their own."""
    box, key = box_of(request), Exchange.of(request.scope).key
    states = _states(box)
    names = [
        name for name in _listed(box.plan) if key is None or key.may_use(box.plan.names[name], name)
    ]
    return _json(ModelList([_model(name, box.plan, states) for name in names]))


@route(
    _PATH + "/{model_id:path}",
    http_method=[HttpMethod.GET, HttpMethod.HEAD],
    sync_to_thread=False,
)
def show(request: Request[Any, Any, Any]) -> Response[Model]:
    """Show one model; its name or alias may contain slashes. Raises EdgedError."""
    box = box_of(request)
    name = request.scope["path"].removeprefix(_PATH + "/")
    check_model(Exchange.of(request.scope), box.plan.resolve(name).model.name, name)
    return _json(_model(name, box.plan, _states(box)))


def _listed(plan: Plan) -> Iterator[str]:
    """Yield every name but those that join an alias and an adapter: there are many ways."""
    for name in plan.names:
        model, _, adapter = name.rpartition(":")
        if adapter != plan.adapters.get(name) or model == plan.names[name]:
            yield name


def _states(box: Box) -> dict[str, ModelStatus]:
    return {status.name: status for status in box.status().models}


def _model(name: str, whole: Plan, states: dict[str, ModelStatus]) -> Model:
    plan, adapter = whole.resolve(name), whole.adapters.get(name)
    model = plan.model
    own = f"{model.name}:{adapter}" if adapter else model.name
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
            aliases=_aliases(plan, adapter),
            alias_of=None if name == own else own,
            adapters=() if adapter else tuple(each.name for each in plan.adapters),
            adapter=adapter,
            error=plan.refusal or (status.error if status else None) or _error(status, adapter),
        ),
    )


def _aliases(plan: ModelPlan, adapter: str | None) -> tuple[str, ...]:
    if adapter is None:
        return plan.model.aliases
    return next((each.aliases for each in plan.adapters if each.name == adapter), ())


def _error(status: ModelStatus | None, adapter: str | None) -> str | None:
    found = (each.error for each in status.adapters if each.name == adapter) if status else ()
    return next(iter(found), None)


def _json(content: Any) -> Response[Any]:
    return Response(content, media_type="application/json", status_code=200)
