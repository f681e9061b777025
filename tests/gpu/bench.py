"""edged beside LMDeploy's own api_server and pipeline on one GPU: `python -m tests.gpu.bench`.

All three are loaded at once, each with the same model, context, batch and KV cache, and take turns
within each round (A B C C B A), with prompts that nobody has sent before. Figures are medians of
the rounds; the ratios are those within a round. Targets: 1.0 of api_server, 0.97 of the pipeline.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import httpx

from edged.hardware import detect

_CONTEXT = 2048
_SHARE = 0.25  # of the memory for each side's KV
_START_S = 600.0
_TARGETS = {"api_server": 1.0, "pipeline": 0.97}
_MODELS_TOML = """
[server]
listen = ["127.0.0.1:{port}"]
[models.m]
safetensors = "file:{model}"
context = {context}
parallel = {parallel}
queue = 1024
load = "startup"
[models.m.lmdeploy]
cache_max_entry_count = {share}
"""


class Round(NamedTuple):
    """What one side did with one set of prompts."""

    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p95_ms: float


class Side(Protocol):
    """Something that answers prompts."""

    name: str

    async def ask(self, prompts: list[str], tokens: int) -> Round:
        """Have all prompts answered together."""
        ...


def figures(first_s: list[float], tokens: int, seconds: float) -> Round:
    """Return a round's rates; times in s."""
    ordered = sorted(first_s)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return Round(tokens / seconds, statistics.median(ordered) * 1e3, p95 * 1e3)


class Http:
    """A server with OpenAI's completions."""

    def __init__(self, name: str, port: int, model: str) -> None:
        self.name, self._model = name, model
        self._client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            timeout=_START_S,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    async def is_up(self) -> bool:
        """Tell whether it answers a request."""
        with contextlib.suppress(httpx.HTTPError):
            await self.ask(["hi"], 1)
            return True
        return False

    async def ask(self, prompts: list[str], tokens: int) -> Round:
        """See `Side.ask`."""
        started = time.monotonic()
        first_s = await asyncio.gather(*(self._one(each, tokens, started) for each in prompts))
        return figures(first_s, len(prompts) * tokens, time.monotonic() - started)

    async def _one(self, prompt: str, tokens: int, started: float) -> float:
        body = {
            "model": self._model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "stream": True, "ignore_eos": True,
        }  # fmt: skip
        first, last = 0.0, ""
        async with self._client.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    first = first or time.monotonic() - started
                    last = line
        said = json.loads(last.removeprefix("data: ") or "{}")
        if said.get("choices", [{}])[0].get("finish_reason") != "length":
            raise SystemExit(f"{self.name} ended an answer early: {last[:300]}")
        return first


class Pipeline:
    """LMDeploy's pipeline in a process of its own."""

    name = "pipeline"

    def __init__(self, python: str, model: Path, settings: dict[str, float]) -> None:
        script = str(Path(__file__).with_name("pipeline_peer.py"))
        self.process = subprocess.Popen(
            [python, script, str(model), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline().strip() != "ready":
            raise SystemExit("the pipeline did not come up; see above")

    async def ask(self, prompts: list[str], tokens: int) -> Round:
        """See `Side.ask`."""
        return await asyncio.to_thread(self._ask, prompts, tokens)

    def _ask(self, prompts: list[str], tokens: int) -> Round:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return figures(found["first_s"], found["tokens"], found["seconds"])


@contextlib.contextmanager
def ending(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Let a process run, and end it afterwards."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prompts(n: int, words: int) -> list[str]:
    """Return texts that nobody has sent before."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    word = lambda: "".join(random.choices(letters, k=5))  # noqa: E731
    return [" ".join(word() for _ in range(words)) for _ in range(n)]


async def measure(sides: list[Side], options: argparse.Namespace) -> dict[str, Any]:
    """Return for each number of clients what each side did, round by round."""
    found: dict[str, Any] = {}
    for n in options.clients:
        rounds: dict[str, list[Round]] = {side.name: [] for side in sides}
        for pair in range(options.pairs + 1):
            for side in (*sides, *reversed(sides)):
                went = await side.ask(prompts(n, options.words), options.tokens)
                if pair:  # the first round warms up
                    rounds[side.name].append(went)
        found[str(n)] = {name: [each._asdict() for each in all_] for name, all_ in rounds.items()}
        show(n, found[str(n)])
    return found


def show(n: int, rounds: dict[str, list[dict[str, float]]]) -> None:
    """Print a table of one number of clients."""
    print(f"\n## {n} clients\n\n| side | tokens/s | TTFT p50 | TTFT p95 | edged / it | target |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, all_ in rounds.items():
        median = {key: statistics.median(each[key] for each in all_) for key in all_[0]}
        ratios = [
            own["tokens_per_s"] / its["tokens_per_s"]
            for own, its in zip(rounds["edged"], all_, strict=True)
        ]
        target = _TARGETS.get(name)
        against = f"{statistics.median(ratios):.3f}" if target else ""
        verdict = f"≥ {target}" if target else ""
        print(
            f"| {name} | {median['tokens_per_s']:.0f} | {median['ttft_p50_ms']:.1f} ms | "
            f"{median['ttft_p95_ms']:.1f} ms | {against} | {verdict} |"
        )


async def come_up(side: Http, process: subprocess.Popen[Any]) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + _START_S
    while not await side.is_up():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"{side.name} did not come up; see above")
        await asyncio.sleep(1)


async def run(options: argparse.Namespace) -> int:
    """Start all sides, measure, write the figures; return the exit code."""
    box = detect()
    python = box.engines.lmdeploy_python
    if not box.gpus or python is None:
        print(f"no GPU, or no LMDeploy: {'; '.join(box.notes)}", file=sys.stderr)
        return 1
    parallel = max(options.clients)
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as stack:
        model = options.model
        if model is None:
            model = Path(made) / "tiny"
            script = str(Path(__file__).with_name("models.py"))
            subprocess.run([python, script, str(model)], check=True)  # noqa: ASYNC221 - alone
            print("A tiny model: what is measured is everything but the GPU.")
        ports = free_port(), free_port()
        config = Path(made) / "models.toml"
        config.write_text(
            _MODELS_TOML.format(
                port=ports[0], model=model, context=_CONTEXT, parallel=parallel, share=_SHARE
            )
        )
        serve = [sys.executable, "-m", "edged", "serve", "--config", str(config)]
        serve += ["--log-level", "warning"]  # a line for each request has its price
        daemon = subprocess.Popen(serve)  # noqa: ASYNC220 - alone
        stack.enter_context(ending(daemon))
        ours = Http("edged", ports[0], "m")
        await come_up(ours, daemon)
        peer = subprocess.Popen(  # noqa: ASYNC220 - alone
            [
                *(python, "-m", "lmdeploy", "serve", "api_server", str(model)),
                *("--server-name", "127.0.0.1", "--server-port", str(ports[1])),
                *("--model-name", "m", "--session-len", str(_CONTEXT)),
                *("--max-batch-size", str(parallel), "--enable-prefix-caching"),
                *("--cache-max-entry-count", str(_SHARE), "--log-level", "ERROR"),
            ]
        )
        stack.enter_context(ending(peer))
        theirs = Http("api_server", ports[1], "m")
        await come_up(theirs, peer)
        settings = {"context": _CONTEXT, "parallel": parallel, "share": _SHARE}
        pipe = Pipeline(python, model, settings)
        stack.enter_context(ending(pipe.process))
        found = await measure([ours, theirs, pipe], options)
    if options.json is not None:
        gpu = box.gpus[0]
        about = {"gpu": gpu.name, "driver": gpu.driver, "lmdeploy": box.engines.lmdeploy}
        options.json.write_text(json.dumps(about | {"clients": found}, indent=2))
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--words", type=int, default=50)
    parser.add_argument("--json", type=Path)
    parser.set_defaults(clients=[1, 16, 64, 256])
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
