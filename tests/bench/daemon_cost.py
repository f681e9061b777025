"""What the daemon costs beside an engine: everything but the model, with an engine of no cost.

The peer is llama-cpp-python's own server, likewise with an engine of no cost. Streams are measured
in chunks per second of the server's own processor time, so that the client's share does not count.
"""

import asyncio
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from edged.api import body
from edged.api.openai.chat import to_generate
from edged.api.openai.schema import ChatRequest
from edged.protocol import Messages
from edged.store.gguf import read_header
from edged.worker.template import Template
from tests.bench.client import Answer, BenchError, chat, whole
from tests.bench.prompts import user
from tests.bench.report import Result, Section
from tests.bench.scenarios import Row
from tests.bench.servers import ROOT, Launch, Server, Settings, edged, free_port, running
from tests.models.cache import build_once

REQUESTS = 300
STREAMS = 64
TOKENS = 500
HISTORY = 100
_PEER_NEEDS = (
    "fastapi==0.165.0",
    "pydantic-settings==2.16.3",
    "sse-starlette==3.7.0",
    "starlette-context==0.3.6",
    "PyYAML==6.0.3",
)

REQUEST = Row("request", "whole request of one token", "ms", more_is_better=False, target=1.0)
CHUNKS = Row("chunks", "chunks per CPU second", "1/s", more_is_better=True, target=50_000)
PARSE = Row(
    "parse", f"{HISTORY} messages: read, check, render", "ms", more_is_better=False, target=5.0
)
BESIDE = (
    Row("request", "whole request of one token", "ms", more_is_better=False),
    Row("chunks", "chunks per CPU second", "1/s", more_is_better=True),
)


async def sections(settings: Settings, folder: Path, n_pairs: int) -> list[Section]:
    """Measure edged against its targets, and beside its peer."""
    figures: dict[str, dict[str, list[float]]] = {}
    async with (
        running(_edged(settings, folder / "edged")) as one,
        running(_peer(settings, folder / "peer")) as other,
    ):
        for server in (one, other):
            figures[server.name] = {"request": [], "chunks": []}
            await _request_ms(server)
        for pair in range(n_pairs):
            for server in (one, other) if pair % 2 == 0 else (other, one):
                figures[server.name]["request"].append(await _request_ms(server))
                figures[server.name]["chunks"].append(await _chunks_per_cpu_s(server))
    ours, theirs = figures[one.name], figures[other.name]
    parse = tuple(_parse_ms() for _ in range(n_pairs))
    return [
        Section(
            "daemon",
            "what the daemon costs, with an engine of no cost",
            (
                Result(REQUEST, tuple(ours["request"])),
                Result(CHUNKS, tuple(ours["chunks"])),
                Result(PARSE, parse),
            ),
        ),
        Section(
            "daemon-peer",
            "the same beside llama-cpp-python's own server (second column), no model either",
            tuple(Result(row, tuple(ours[row.key]), tuple(theirs[row.key])) for row in BESIDE),
        ),
    ]


async def _request_ms(server: Server) -> float:
    """Return the median time of a request that is not streamed, on a connection of its own."""
    times = []
    for _ in range(REQUESTS):
        started = time.perf_counter()
        await whole(server.address, [user("hello")], 1)
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


async def _chunks_per_cpu_s(server: Server) -> float:
    before_s = _cpu_s(server.pid)
    answers = [Answer(0.0) for _ in range(STREAMS)]
    await asyncio.gather(
        *(chat(server.address, [user("go")], TOKENS, answer, counted=False) for answer in answers)
    )
    spent_s = _cpu_s(server.pid) - before_s
    n_chunks = sum(len(answer.arrivals) for answer in answers)
    if n_chunks < STREAMS * TOKENS // 2:
        raise BenchError(f"{n_chunks} chunks came of {STREAMS * TOKENS} tokens")
    return n_chunks / spent_s


def _cpu_s(pid: int) -> float:
    """Return the processor time of one process: the daemon, not its worker."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _parse_ms() -> float:
    """Return the time from a body's bytes to the prompt's text, for a long history."""
    text = "The quick brown fox jumps over the lazy dog. " * 8
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": f"{i}: {text}"}
        for i in range(HISTORY - 1)
    ]
    data = msgspec.json.encode({"model": "bench", "messages": [*messages, user("and now?")]})
    header = read_header(ROOT / "edged/store/builtin/edge-guide.gguf")
    template = Template(str(header.metadata["tokenizer.chat_template"]))

    def once() -> float:
        started = time.perf_counter()
        generate = to_generate(body.convert(msgspec.json.decode(data), ChatRequest))
        assert isinstance(generate.prompt, Messages)
        template.render(generate.prompt)
        return (time.perf_counter() - started) * 1e3

    return statistics.median(once() for _ in range(20))


def _edged(settings: Settings, folder: Path) -> Launch:
    launch = edged(dataclasses.replace(settings, parallel=STREAMS), folder)
    script = str(Path(__file__).with_name("null_serve.py"))
    command = (sys.executable, script, launch.command[-1])
    environment = launch.environment | {"PYTHONPATH": str(ROOT)}
    return Launch("edged", command, launch.port, launch.ready, launch.log, environment)


def _peer(settings: Settings, folder: Path) -> Launch:
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    packages = build_once("null-peer-1", _install)
    script = str(Path(__file__).with_name("null_peer.py"))
    command = (sys.executable, script, str(port), str(settings.model))
    environment = {"PYTHONPATH": str(packages)}
    log = folder / "log.txt"
    return Launch("llama-cpp-python", command, port, "/v1/models", log, environment)


def _install(target: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target)]
    done = subprocess.run([*pip, *_PEER_NEEDS], check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"the peer's packages cannot be installed: {done.stderr[-300:]}")
