"""An OpenAPI description of the routes, built from the Structs that read their bodies.

edged serves none: this one is for those who feed it (`test_fuzz.py`, schemathesis).
"""

from __future__ import annotations

from typing import Any

import msgspec

from edged.api.anthropic.schema import MessagesRequest, Prompted
from edged.api.openai.embeddings import EmbeddingsRequest
from edged.api.openai.rerank import RerankRequest
from edged.api.openai.responses.schema import ResponseRequest
from edged.api.openai.schema import ChatRequest, CompletionRequest
from edged.api.tokens import DetokenizeRequest, TokenizeRequest

#: What each route reads.
BODIES: dict[str, type] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/chat/completions/input_tokens": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
    "/v1/responses/input_tokens": ResponseRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": Prompted,
    "/v1/embeddings": EmbeddingsRequest,
    "/v1/rerank": RerankRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/apply-template": ChatRequest,
}
#: Paths without a body, with the type of what stands in braces.
_PLAIN = {
    "get": [
        "/v1/models",
        "/v1/models/{id}",
        "/v1/responses/{id}",
        "/v1/responses/{id}/input_items",
        "/health",
        "/ready",
        "/status",
        "/metrics",
    ],
    "delete": ["/v1/responses/{id}"],
}
_MOST_TOKENS = 8  # an answer in a run of hundreds is short


def openapi(models: dict[str, list[str]]) -> dict[str, Any]:
    """Return the description; `models`: those that may be asked for, by path."""
    found, components = msgspec.json.schema_components(
        BODIES.values(), ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, Any] = {}
    for (path, _), schema in zip(BODIES.items(), found, strict=True):
        name = schema["$ref"].rpartition("/")[2]
        short = _short(path)
        narrowed = {
            "properties": {"model": {"enum": models[path]}} | short,
            "required": ["model", *short],
        }
        body = {"allOf": [{"$ref": schema["$ref"]}, narrowed]}
        assert name in components
        content = {"application/json": {"schema": body}}
        paths[path] = {"post": {"requestBody": {"required": True, "content": content}}}
    for method, plain in _PLAIN.items():
        for path in plain:
            of_id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
            paths.setdefault(path, {})[method] = {"parameters": [of_id] if "{id}" in path else []}
    for path in paths.values():
        for operation in path.values():
            operation["responses"] = {"200": {"description": "well"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "edged", "version": "1"},
        "paths": paths,
        "components": {"schemas": components},
    }


def _short(path: str) -> dict[str, Any]:
    """Return limits that keep what is valid short."""
    few = {"type": "integer", "minimum": 1, "maximum": _MOST_TOKENS}
    if path == "/v1/responses":
        return {"max_output_tokens": few}
    if path == "/v1/chat/completions":
        return {"max_completion_tokens": few, "n": {"enum": [1, 2]}}
    if path in {"/v1/completions", "/v1/messages"}:
        return {"max_tokens": few}
    return {}
