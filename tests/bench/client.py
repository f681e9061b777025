"""A load client for OpenAI's streaming API that costs the machine under test very little."""

import asyncio
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

REQUEST_LIMIT_S = 300.0


class BenchError(RuntimeError):
    """A request or a server did not do what the benchmark needs."""


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server listens, and the model to ask for. ``counts``: its streams tell the usage."""

    port: int
    host: str = "127.0.0.1"
    model: str = "bench"
    counts: bool = True


@dataclasses.dataclass
class Answer:
    """One streamed answer; times are ``time.perf_counter`` seconds."""

    started: float
    arrivals: list[float] = dataclasses.field(default_factory=list)
    text: str = ""
    n_prompt: int = 0
    n_cached: int = 0
    n_tokens: int = 0
    reason: str = ""  # why it ended

    @property
    def ttft_s(self) -> float:
        """Time from sending the request to the first text."""
        return self.arrivals[0] - self.started

    @property
    def ended(self) -> float:
        """When the last text came."""
        return self.arrivals[-1]

    def gaps_s(self, since: float = 0.0) -> list[float]:
        """Return the times between texts, those that end after ``since``."""
        return [b - a for a, b in itertools.pairwise(self.arrivals) if b > since]


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


_decoder = msgspec.json.Decoder(_Event)


async def chat(
    address: Address,
    messages: list[dict[str, str]],
    max_tokens: int,
    answer: Answer | None = None,
    *,
    counted: bool = True,
) -> Answer:
    """Stream one greedy chat completion of exactly ``max_tokens`` tokens.

    The benchmark's model never ends by itself, so neither side has to mask the end token.
    ``answer`` fills up while the stream runs, for a caller that watches it. ``counted``: the
    server tells its usage, which is checked; where it cannot, the reason of the end says as much.
    """
    body = {
        "model": address.model,
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }
    if counted and address.counts:
        body["stream_options"] = {"include_usage": True}
    answer = answer or Answer(0.0)
    answer.started = time.perf_counter()
    async with asyncio.timeout(REQUEST_LIMIT_S):
        async for arrived, line in _events(address, "/v1/chat/completions", body):
            _take(answer, arrived, line)
    if counted and not address.counts and answer.reason == "length":
        answer.n_tokens = max_tokens
    if counted and answer.n_tokens != max_tokens:
        came = answer.n_tokens or f"only {len(answer.arrivals)} pieces of text"
        raise BenchError(f"{max_tokens} tokens were asked for, {came} came ({answer.reason!r})")
    return answer


async def whole(address: Address, messages: list[dict[str, str]], max_tokens: int) -> None:
    """Ask for one answer that is not streamed."""
    body = {"model": address.model, "messages": messages, "max_tokens": max_tokens}
    await post(address, "/v1/chat/completions", body)


async def post(address: Address, path: str, body: dict[str, Any]) -> bytes:
    """Return the body of the answer to a request, on a connection of its own."""
    content = msgspec.json.encode(body)
    async with asyncio.timeout(REQUEST_LIMIT_S):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        try:
            writer.write(_head(address, path, content) + content)
            said = await reader.read()
        finally:
            writer.close()
    head, _, rest = said.partition(b"\r\n\r\n")
    if head.split()[1:2] != [b"200"]:
        raise BenchError(said.decode(errors="replace")[-500:])
    return rest


def _head(address: Address, path: str, content: bytes) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\n"
        "Content-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    ).encode()


def _take(answer: Answer, arrived: float, line: bytes) -> None:
    event = _decoder.decode(line)
    if event.error is not None:
        raise BenchError(f"error in the stream: {bytes(event.error).decode()}")
    for choice in event.choices:
        text = choice.text or (choice.delta.content if choice.delta else None)
        if text:
            answer.arrivals.append(arrived)
            answer.text += text
        answer.reason = choice.finish_reason or answer.reason
    if event.usage is not None:
        answer.n_prompt = event.usage.prompt_tokens
        answer.n_tokens = event.usage.completion_tokens
        details = event.usage.prompt_tokens_details
        answer.n_cached = (details.cached_tokens or 0) if details else 0


async def _events(
    address: Address, path: str, body: dict[str, Any]
) -> AsyncIterator[tuple[float, bytes]]:
    """Yield the data of each server-sent event with its time of arrival."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        content = msgspec.json.encode(body)
        writer.write(_head(address, path, content) + content)
        status = await reader.readline()
        head = await reader.readuntil(b"\r\n\r\n")
        if status.split()[1:2] != [b"200"]:
            said = await reader.read(2000)
            raise BenchError(f"{status.decode().strip()}: {said.decode(errors='replace')}")
        if b"chunked" not in head.lower():
            raise BenchError("the answer is not chunked")
        rest = b""
        async for piece in _chunks(reader):
            arrived = time.perf_counter()
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                data = line.removeprefix(b"data:").strip()
                if line.startswith(b"data:") and data != b"[DONE]":
                    yield arrived, data
    finally:
        writer.close()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readline() or b"0", 16):
        yield (await reader.readexactly(size + 2))[:-2]
