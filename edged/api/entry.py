"""How a request for a model comes in: its body, the model that it names, who answers it."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

from litestar import Request
from msgspec import Struct

from edged.api import body
from edged.api.access import check_model
from edged.api.box import Box, box_of
from edged.api.exchange import Exchange
from edged.api.upstream import PassThrough
from edged.plan import ModelPlan


class Addressed(Struct, kw_only=True):
    """The one field that decides who reads the others."""

    model: str


class Entry(NamedTuple):
    """One request for a model, before its dialect has read more than the model's name."""

    request: Request[Any, Any, Any]
    box: Box
    exchange: Exchange
    raw: dict[str, Any]
    plan: ModelPlan
    adapter: str | None  # that comes with the model's name

    @classmethod
    async def of(cls, request: Request[Any, Any, Any], *, sole: bool = False) -> Self:
        """Read the body and find the model; the log line then knows it.

        `sole`: the body may leave out the name of a box's only model.

        Raises InvalidJson, InvalidRequest, BodyTooLarge, ModelNotFound, ModelNotAllowed and so on.
        """
        box, exchange = box_of(request), Exchange.of(request.scope)
        raw = await body.read_json(request, box.plan.config.server)
        if sole and raw.get("model") is None and len(box.plan.models) == 1:
            raw = raw | {"model": next(iter(box.plan.models))}
        name = body.convert(raw, Addressed).model
        plan = box.plan.resolve(name)
        exchange.model = plan.model.name
        check_model(exchange, plan.model.name, name)
        return cls(request, box, exchange, raw, plan, box.plan.adapters.get(name))

    @property
    def model(self) -> str:
        """The configured name, whatever alias was asked for."""
        return self.plan.model.name

    def upstream(self, path: str, *, root: bool = False) -> PassThrough | None:
        """Return who passes the request on to `path` of the model's upstream, if it has one.

        `root`: the path is not below the upstream's `/v1` but beside it.
        """
        if self.plan.engine != "upstream":
            return None
        return PassThrough(self.request.app, self.plan, path, self.raw, root=root)


def differs(one: Any, other: Any) -> bool:
    """Return whether two spellings of one parameter were both given and contradict each other."""
    return one is not None and other is not None and one != other
