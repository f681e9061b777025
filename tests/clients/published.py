"""Whether what edged sent is what OpenAI and Anthropic published: strictly, to the last field.

The types are those of the newest SDKs, validated in strict mode. Fields that the types do not know
are admitted from `OWN` only. Fields that are there for every reply of OpenAI's but optional in the
SDK's types are asked for by name.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import anthropic.types
import openai.types
import openai.types.chat
import openai.types.responses
from pydantic import BaseModel, TypeAdapter, ValidationError

from tests.clients.recorder import Exchange

#: What edged adds to the published types, by the type it stands in.
OWN = {
    "ChatCompletion": {"timings"},
    "ChatCompletionChunk": {"timings"},
    "Completion": {"timings"},
    "ChatCompletionMessage": {"reasoning_content"},
    "ChoiceDelta": {"reasoning_content"},
    "Model": {"edged"},
    "Response": {"store", "timings"},
}
_ERROR_KEYS = {"message", "type", "param", "code"}
_CHUNKS = {
    "/v1/chat/completions": openai.types.chat.ChatCompletionChunk,
    "/v1/completions": openai.types.Completion,
}
_WHOLE = {
    ("POST", "/v1/chat/completions"): openai.types.chat.ChatCompletion,
    ("POST", "/v1/completions"): openai.types.Completion,
    ("POST", "/v1/embeddings"): openai.types.CreateEmbeddingResponse,
    ("POST", "/v1/responses"): openai.types.responses.Response,
    ("POST", "/v1/responses/input_tokens"): openai.types.responses.InputTokenCountResponse,
    ("POST", "/v1/messages"): anthropic.types.Message,
    ("POST", "/v1/messages/count_tokens"): anthropic.types.MessageTokensCount,
}
_HTTP_ERROR = 400


def problems(exchange: Exchange) -> list[str]:
    """Return one line for each thing that is not as published."""
    path = exchange.path.partition("?")[0].rstrip("/")
    found: list[str] = []
    try:
        if exchange.method == "HEAD":
            found += ["a body after HEAD"] if exchange.body else []
        elif exchange.status >= _HTTP_ERROR:
            found += _error(json.loads(exchange.body), path)
        elif exchange.content_type.startswith("text/event-stream"):
            found += _stream(exchange, path)
        elif exchange.whole and exchange.content_type.startswith("application/json"):
            found += _body(exchange, path)
    except (ValidationError, ValueError, TypeError, KeyError) as error:
        found.append(f"{type(error).__name__}: {error}")
    return [f"{exchange}: {line}" for line in found]


def events(body: bytes) -> Iterator[tuple[str, str]]:
    """Yield each whole server-sent event as (name, data); comments are passed over."""
    for block in body.decode().split("\n\n")[:-1]:
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        unknown = fields.keys() - {"event", "data"}
        if unknown:
            raise ValueError(f"lines of a stream that nobody reads: {unknown}")
        if fields:
            yield fields.get("event", ""), fields["data"]


def _body(exchange: Exchange, path: str) -> Iterator[str]:
    value = json.loads(exchange.body)
    if path == "/v1/models":
        if value.keys() != {"object", "data"} or value["object"] != "list":
            yield "the list of models has other fields than object and data"
        for each in value["data"]:
            yield from _strict(openai.types.Model, each)
        return
    wanted = _WHOLE.get((exchange.method, path)) or _one_of_many(exchange.method, path)
    if wanted is None:
        return
    if path == "/v1/embeddings":
        for each in value["data"]:
            if isinstance(each["embedding"], str):  # base64, which the SDK decodes before its type
                each["embedding"] = []
    yield from _strict(wanted, value)
    if path == "/v1/chat/completions":
        yield from _chat_details(value)


def _one_of_many(method: str, path: str) -> Any:
    """Return the type of what stands under an id of its own."""
    if path.startswith("/v1/models/"):
        return openai.types.Model
    if method != "DELETE" and re.fullmatch(r"/v1/responses/[^/]+(/cancel)?", path):
        return openai.types.responses.Response
    return None


def _chat_details(value: dict[str, Any]) -> Iterator[str]:
    for choice in value["choices"]:
        if "logprobs" not in choice or "refusal" not in choice["message"]:
            yield "a choice without logprobs, or a message without refusal"
        calls = choice["message"].get("tool_calls")
        if calls == []:
            yield "tool_calls is empty; OpenAI leaves it out"
        if (choice["finish_reason"] == "tool_calls") and not calls:
            yield "finish_reason is tool_calls, but there are none"


def _stream(exchange: Exchange, path: str) -> Iterator[str]:
    found = list(events(exchange.body))
    if path == "/v1/messages":
        yield from _anthropic_stream(exchange, found)
        return
    if path.startswith("/v1/responses"):
        yield from _responses_stream(exchange, found)
        return
    yield from _completion_stream(exchange, found, path)


def _completion_stream(
    exchange: Exchange, found: list[tuple[str, str]], path: str
) -> Iterator[str]:
    if any(name for name, _ in found):
        yield "an event has a name, which OpenAI's have not"
    data = [each for _, each in found]
    if exchange.whole and data[-1:] != ["[DONE]"]:
        yield "the stream does not end with [DONE]"
    for each in data:
        if each != "[DONE]":  # also in a stream that the client left right after it
            yield from _chunk(json.loads(each), path)


def _chunk(value: dict[str, Any], path: str) -> Iterator[str]:
    if "error" in value:
        yield from _error(value, path)
        return
    if path == "/v1/completions":
        for choice in value["choices"]:
            # The published type forgets what OpenAI sends: null until the last chunk.
            choice["finish_reason"] = choice["finish_reason"] or "stop"
    yield from _strict(_CHUNKS[path], value)
    for choice in value["choices"]:
        calls = [call["index"] for call in choice.get("delta", {}).get("tool_calls", ())]
        if len(calls) > len(set(calls)):
            yield "a chunk has two pieces of one call; clients read one"


def _responses_stream(exchange: Exchange, found: list[tuple[str, str]]) -> Iterator[str]:
    values = [json.loads(data) for _, data in found]
    for (name, _), value in zip(found, values, strict=True):
        if name != value["type"]:
            yield f"an event of type {value['type']} is named {name!r}"
        yield from _strict(openai.types.responses.ResponseStreamEvent, value)
    numbers = [value["sequence_number"] for value in values]
    first = numbers[0] if numbers else 0
    if numbers != list(range(first, first + len(numbers))):
        yield f"sequence numbers are not in order: {numbers}"
    last = {"response.completed", "response.incomplete", "response.failed", "error"}
    if exchange.whole and values[-1]["type"] not in last:
        yield f"the stream ends with {values[-1]['type']}"


def _anthropic_stream(exchange: Exchange, found: list[tuple[str, str]]) -> Iterator[str]:
    for name, data in found:
        value = json.loads(data)
        if name != value["type"]:
            yield f"an event of type {value['type']} is named {name!r}"
        if name == "error":
            yield from _error(value, "/v1/messages")
        elif name != "ping":
            yield from _strict(anthropic.types.RawMessageStreamEvent, value)
    if exchange.whole and found[-1][0] not in {"message_stop", "error"}:
        yield f"the stream ends with {found[-1][0]}"


def _error(value: dict[str, Any], path: str) -> Iterator[str]:
    if path.startswith("/v1/messages"):
        error = value.get("error", {})
        if value.get("type") != "error" or not {"type", "message"} <= error.keys():
            yield f"not Anthropic's shape of an error: {value}"
        return
    error = value.get("error", {})
    if value.keys() != {"error"} or error.keys() != _ERROR_KEYS:
        yield f"not OpenAI's shape of an error: {value}"
        return
    if not (isinstance(error["message"], str) and error["message"]):
        yield f"an error without a message: {value}"
    if not isinstance(error["type"], str) or not re.fullmatch(r"[a-z_]+", error["code"] or ""):
        yield f"type and code of an error are words: {value}"
    if not isinstance(error["param"], str | None):
        yield f"the param of an error is a name: {value}"


@functools.cache
def _validator(kind: Any) -> Callable[[bytes], Any]:
    adapter = TypeAdapter(kind)
    return lambda data: adapter.validate_json(data, strict=True)


def _strict(kind: Any, value: Any) -> Iterator[str]:
    yield from _unknown(_validator(kind)(json.dumps(value).encode()))


def _unknown(value: Any) -> Iterator[str]:
    """Yield every field that the published types do not have and that is not our own."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _unknown(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _unknown(each)
    elif isinstance(value, BaseModel):
        name = type(value).__name__
        more = set(value.model_extra or ()) - OWN.get(name, set())
        if more:
            yield f"{name} has unpublished fields: {sorted(more)}"
        for field in type(value).model_fields:
            yield from _unknown(getattr(value, field))
