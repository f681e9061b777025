"""One HTTP request and its response, as the log and the metrics see it."""

from __future__ import annotations

import dataclasses
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any, Self, cast

from edged.auth import Key
from edged.errors import ClientGone
from edged.log import get_logger
from edged.metrics import Metrics

_SANE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_PROBES = frozenset({"/health", "/ready", "/metrics"})
_LONGEST_LOGGED_PATH = 200


@dataclasses.dataclass(slots=True)
class Exchange:
    """Facts of one request, gathered while it runs; `close` writes its one line of log.

    Written by the request's own task only. Prompts and answers never come here.
    """

    id: str
    method: str
    path: str
    client: str
    admin: bool = False  # it may give orders to the daemon
    key: Key | None = None  # that it came with; the log has its name only
    owner: str = ""  # whose stored responses it may see: the name of its key
    started_s: float = dataclasses.field(default_factory=time.perf_counter)
    status: int = 0
    error: str | None = None
    endpoint: str = ""  # the route; empty while no route is known
    model: str = ""  # a configured name; empty while none is known
    stream: bool | None = None
    ttft_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    finish: str | None = None
    ignored_fields: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def open(cls, scope: Mapping[str, Any], admin_socket: str = "") -> Self:
        """Begin the exchange of this ASGI scope and leave it there for `of`.

        What comes through the socket at `admin_socket` may give orders: the rights of its file say
        who can open it.
        """
        given = next((v for k, v in scope["headers"] if k == b"x-request-id"), b"")
        peer, here = scope.get("client"), scope.get("server")
        exchange = cls(
            id=given.decode() if _SANE_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}",
            method=scope["method"],
            path=scope["path"],
            client=peer[0] if peer and peer[0] else "unix",
            admin=bool(admin_socket and here and here[0] == admin_socket),
        )
        cast("dict[str, Any]", scope).setdefault("state", {})["exchange"] = exchange
        return exchange

    @staticmethod
    def of(scope: Mapping[str, Any]) -> Exchange:
        """Return the exchange of this ASGI scope."""
        exchange: Exchange = scope["state"]["exchange"]
        return exchange

    def elapsed_s(self) -> float:
        """Return the time since the request's head arrived, in s."""
        return time.perf_counter() - self.started_s

    def close(self, metrics: Metrics) -> None:
        """Count the request and write its line."""
        self.status = self.status or ClientGone.status  # nothing was sent: nobody was there
        metrics.request_done(self.model, self.endpoint, self.status)
        log = get_logger()
        quiet = self.endpoint in _PROBES and self.error is None
        (log.debug if quiet else log.info)("request.done", **self._fields())

    def _fields(self) -> dict[str, Any]:
        fields = {
            "method": self.method,
            "path": self.path[:_LONGEST_LOGGED_PATH],
            "status": self.status,
            "ms": round(self.elapsed_s() * 1000, 1),
            "model": self.model or None,
            "stream": self.stream,
            "ttft_ms": None if self.ttft_s is None else round(self.ttft_s * 1000, 1),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached": self.cached_tokens,
            "finish": self.finish,
            "error": self.error,
            "client": self.client,
            "key": self.key.name if self.key else None,
            "request_id": self.id,
            "ignored_fields": self.ignored_fields or None,
        }
        return {name: value for name, value in fields.items() if value is not None}
