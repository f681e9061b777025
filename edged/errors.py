"""One tree of errors: what went wrong, for whom, and what the reader can do next.

A class fixes the HTTP status and OpenAI's `type` and `code`; an instance carries the message.
Raise them anywhere; only `api/app.py` turns them into HTTP. An error that crosses the worker's
socket travels as its `code` and comes back as the same class through `from_code`.
"""

from __future__ import annotations

from typing import ClassVar


class EdgedError(Exception):
    """Root of the tree. `param` names the offending request field, `retry_after_s` a wait in s."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


# ── the request is at fault ──


class InvalidRequest(EdgedError):
    """A value is missing, of the wrong type or out of range."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class InvalidJson(InvalidRequest):
    """The body is not JSON."""

    code = "invalid_json"


class UnsupportedParameter(InvalidRequest):
    """A known parameter that this version, or this model's engine, cannot honour."""

    code = "unsupported_parameter"


class WrongModelKind(InvalidRequest):
    """The model is for something else: chat, embeddings or rerank; the message says for what."""

    code = "wrong_model_kind"

    @classmethod
    def of(cls, kind: str) -> WrongModelKind:
        """Return the error of a model of this kind that was asked for something else."""
        message = f"this is {_KINDS[kind][0]}: it answers {_KINDS[kind][1]}"
        return cls(message, param="model")


_KINDS = {
    "chat": (
        "a chat model",
        "/v1/chat/completions, /v1/completions, /v1/responses and /v1/messages",
    ),
    "embeddings": ("an embeddings model", "/v1/embeddings"),
    "rerank": ("a rerank model", "/v1/rerank"),
}


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer together exceed the model's context."""

    code = "context_length_exceeded"


class InvalidApiKey(InvalidRequest):
    """No key where one is wanted, or one that this box does not know or that has expired."""

    status = 401
    code = "invalid_api_key"


class NotAllowed(EdgedError):
    """Somebody known asks for what is not for them."""

    status = 403
    type = "permission_error"
    code = "not_allowed"


class NetworkNotAllowed(NotAllowed):
    """The client's address is outside `server.allow`, or outside its key's networks."""

    code = "network_not_allowed"


class PoisonedRequest(InvalidRequest):
    """This very request killed its model's worker, more than once."""

    code = "poisoned_request"


class AdminOnly(NotAllowed):
    """The path gives orders to the daemon: only its own socket, or an admin key, may."""

    code = "admin_only"


class ConfigRefused(InvalidRequest):
    """models.toml cannot be brought into force; the message lists every problem, one a line."""

    code = "config_refused"


class ModelNotAllowed(NotAllowed):
    """The key is for other models."""

    code = "model_not_allowed"


class HostNotAllowed(NotAllowed):
    """A browser came here under a name that is not this box's (DNS rebinding)."""

    code = "host_not_allowed"


class OriginNotAllowed(NotAllowed):
    """A page of another site asks, and `server.cors` does not name it."""

    code = "origin_not_allowed"


class UnknownPath(InvalidRequest):
    """No route has this path."""

    status = 404
    code = "unknown_path"


class MethodNotAllowed(InvalidRequest):
    """The path exists, but not for this method."""

    status = 405
    code = "method_not_allowed"


class ModelNotFound(InvalidRequest):
    """No model or alias has this name."""

    status = 404
    code = "model_not_found"


class ResponseNotFound(InvalidRequest):
    """No stored response of this client has this id."""

    status = 404
    code = "response_not_found"


class ItemNotFound(InvalidRequest):
    """No stored item of this client has this id."""

    status = 404
    code = "item_not_found"


class PreviousResponseNotFound(InvalidRequest):
    """The conversation to go on with is not stored, or not all of it any more."""

    code = "previous_response_not_found"  # 400, as OpenAI answers


class ClientTooSlow(InvalidRequest):
    """The body did not arrive in time."""

    status = 408
    code = "client_too_slow"


class ClientGone(InvalidRequest):
    """The client closed the connection; nobody reads this answer, only the log does."""

    status = 499
    code = "client_gone"


class BodyTooLarge(InvalidRequest):
    """The body is larger than `server.max_body`."""

    status = 413
    code = "body_too_large"


class UnsupportedMediaType(InvalidRequest):
    """The body is of a kind that this route does not read."""

    status = 415
    code = "unsupported_media_type"


# ── the box is at its limit ──


class QueueFull(EdgedError):
    """More requests wait for the model than its `queue` allows."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class RateLimited(EdgedError):
    """The key has used what it may for now; or wrong keys come too fast."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class ServiceUnavailable(EdgedError):
    """The model cannot answer now; the message says why and for how long."""

    status = 503
    type = "service_unavailable_error"
    code = "unavailable"


class ModelLoading(ServiceUnavailable):
    """The model is still being loaded (or fetched) after the longest wait."""

    code = "model_loading"


class InsufficientMemory(ServiceUnavailable):
    """The model does not fit into memory beside what runs."""

    code = "insufficient_memory"


class WorkerCrashed(ServiceUnavailable):
    """The model's worker died while it held the request."""

    code = "worker_crashed"


class ModelFailed(ServiceUnavailable):
    """The model cannot be loaded until its configuration or file is mended."""

    code = "model_failed"


class AdapterFailed(ServiceUnavailable):
    """The adapter cannot be used until its file or its entry is mended; its model can."""

    code = "adapter_failed"


class ModelDrained(ServiceUnavailable):
    """Somebody who runs the box took the model out of service; `edged load` brings it back."""

    code = "model_drained"


class ShuttingDown(ServiceUnavailable):
    """The daemon is stopping, or the model was removed while the request waited."""

    code = "shutting_down"


class InternalError(EdgedError):
    """A fault of edged's own; details are in the log, never in the answer."""


# ── outside a request ──


class ConfigError(EdgedError):
    """`models.toml` has problems; the message lists them all, one a line."""

    code = "config_error"


class StoreError(EdgedError):
    """The files of a model are missing or cannot be what they should be."""

    code = "store_error"


class NotFetched(StoreError):
    """The files of a source are not on this box yet; they can be fetched."""

    code = "not_fetched"


class Unreachable(StoreError):
    """A server cannot be reached or stumbles; later it may be better."""

    code = "unreachable"


class GgufError(StoreError):
    """A file is not a GGUF, is damaged, or holds something other than a model."""

    code = "gguf_error"


def _tree(root: type[EdgedError]) -> dict[str, type[EdgedError]]:
    found = {root.code: root}
    for sub in root.__subclasses__():
        found |= _tree(sub)
    return found


def from_code(code: str, message: str, param: str | None = None) -> EdgedError:
    """Return the error of the class that has this `code`; an unknown code is an internal error."""
    return _tree(EdgedError).get(code, InternalError)(message, param=param)
