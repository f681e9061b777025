"""What the daemon costs beside an engine: everything but the model, with an engine of no cost.

The peer is llama-cpp-python's own server, likewise with an engine of no cost. Streams are measured
in chunks per second of the server's own processor time, so that the client's share does not count.
"""

import asyncio
import dataclasses
import os
import statistics
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
from tests.bench.others import Taken, watched
from tests.bench.prompts import user
from tests.bench.python_peer import packages
from tests.bench.report import Result, Section
from tests.bench.scenario import LLAMA_CPP_PYTHON, Row
from tests.bench.servers import ROOT, Launch, Server, Settings, edged, free_port, running

REQUESTS = 300
STREAMS = 64
TOKENS = 500
HISTORY = 100
WHOLE = Row("request", "whole request of one token", "ms", more_is_better=False)
BARE = Row("bare", "the same to a bare asyncio server", "ms", more_is_better=False)
COST = Row("cost", "daemon: the difference", "ms", more_is_better=False, limit=1.0)
CHUNKS = Row("chunks", "chunks per CPU second", "1/s", more_is_better=True, limit=50_000)
PARSE = Row(
    "parse", f"{HISTORY} messages: read, check, render", "ms", more_is_better=False, limit=5.0
)
BESIDE = (WHOLE, dataclasses.replace(CHUNKS, limit=None))


async def sections(settings: Settings, folder: Path, n_pairs: int) -> list[Section]:
    """Measure edged against its targets, and beside its peer."""
    found: dict[str, list[float]] = {"bare": [], "cost": [], "parse": []}
    async with (
        running(_edged(settings, folder / "edged")) as one,
        running(_peer(settings, folder / "peer")) as other,
        running(_bare(folder / "bare")) as bare,
    ):
        figures: dict[str, dict[str, list[float]]] = {}
        taken: dict[str, list[Taken]] = {}
        for server in (one, other):
            figures[server.name] = {"request": [], "chunks": []}
            taken[server.name] = []
            await _request_ms(server)
        for pair in range(n_pairs):
            for server in (one, other) if pair % 2 == 0 else (other, one):
                with watched() as meanwhile:
                    figures[server.name]["request"].append(await _request_ms(server))
                    figures[server.name]["chunks"].append(await _chunks_per_cpu_s(server))
                taken[server.name].append(meanwhile)
            found["bare"].append(await _request_ms(bare))
            found["cost"].append(figures[one.name]["request"][-1] - found["bare"][-1])
            found["parse"].append(_parse_ms())
    found |= figures[one.name]
    return [
        Section(
            "daemon",
            "what the daemon costs, with an engine of no cost",
            tuple(
                Result(row, {one.name: tuple(found[row.key])})
                for row in (WHOLE, BARE, COST, CHUNKS, PARSE)
            ),
            {one.name: taken[one.name]},
        ),
        Section(
            "daemon-peer",
            "the same beside llama-cpp-python's own server, no model either",
            tuple(
                Result(row, {name: tuple(each[row.key]) for name, each in figures.items()})
                for row in BESIDE
            ),
            taken,
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
    script = str(Path(__file__).with_name("null_peer.py"))
    command = (sys.executable, script, str(port), str(settings.model))
    environment = {"PYTHONPATH": str(packages())}
    log = folder / "log.txt"
    return Launch(LLAMA_CPP_PYTHON, command, port, "/v1/models", log, environment)


def _bare(folder: Path) -> Launch:
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = (sys.executable, str(Path(__file__).with_name("bare_peer.py")), str(port))
    return Launch("bare", command, port, "/", folder / "log.txt")
