"""How the box is: `/health`, `/ready`, `/status` and `/metrics`."""

from __future__ import annotations

from typing import Any

from litestar import HttpMethod, Request, Response, route
from msgspec import Struct, structs

from edged import metrics as prometheus
from edged.api import in_force
from edged.api.box import box_of
from edged.errors import UnknownPath

_READ = [HttpMethod.GET, HttpMethod.HEAD]


class Health(Struct):
    """Body of `/health`."""

    status: str = "ok"


class Readiness(Struct):
    """Body of `/ready`: one line for each startup model that does not serve yet."""

    ready: bool
    waiting_for: list[str]


@route("/health", http_method=_READ, sync_to_thread=False)
def health() -> Response[Health]:
    """Say that the daemon's loop lives."""
    return _json(Health())


@route("/ready", http_method=_READ, sync_to_thread=False)
def ready(request: Request[Any, Any, Any]) -> Response[Readiness]:
    """Say whether every model that loads at startup serves: 200, or 503 and what is missing."""
    is_ready, missing = box_of(request).ready()
    return _json(Readiness(is_ready, missing), 200 if is_ready else 503)


@route("/status", http_method=_READ, sync_to_thread=False)
def status(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
    """Say everything: configuration, hardware, models, workers, and what `edged check` compares."""
    box = box_of(request)
    return _json(structs.asdict(box.status()) | {"in_force": in_force.of(box.plan)})


@route("/metrics", http_method=_READ, sync_to_thread=False)
def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Say it to Prometheus."""
    box = box_of(request)
    page = box.metrics.render(box.status())
    return Response(page, media_type=prometheus.MEDIA_TYPE, status_code=200)


@route("/ca.crt", http_method=_READ, sync_to_thread=False)
def ca(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Give the certificate that makes clients trust this box; raises UnknownPath without one."""
    found = box_of(request).ca()
    if found is None:
        raise UnknownPath('there is no CA of this box in use: [server.tls] mode = "self-signed"')
    return Response(found, media_type="application/x-pem-file", status_code=200)


def _json(content: Any, status_code: int = 200) -> Response[Any]:
    return Response(content, media_type="application/json", status_code=status_code)
