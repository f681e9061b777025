"""`edged bench` against a real daemon and, for what takes too long, against one that plays."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import httpx
import pytest
from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families

from edged.api.app import create_app
from edged.cli.bench import sizes
from edged.cli.bench.daemon import BenchError, Daemon
from edged.cli.bench.measuring import Measuring
from edged.errors import ModelFailed
from edged.protocol import Delta, Event, Finish, Generate, Started, Usage
from tests.api.conftest import PlayedBox, served
from tests.clients.conftest import LIMIT_S, MODELS_TOML, eventually, free_port
from tests.clients.conftest import served as running
from tests.clients.test_cli import edged
from tests.models import UnavailableError, tiny

SECONDS = "20"

# One thread: two that wait for each other come nearly to a halt where others hold the cores, and
# then the time is up before everything was measured.
MODELS = (
    MODELS_TOML
    + """
[models.edge-guide.llamacpp]
threads = 1
"""
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("bench"), MODELS) as url:
        yield url


VECTORS = """
[server]
listen = ["127.0.0.1:{{port}}"]
[models.words]
gguf = "file:{words}"
[models.judge]
gguf = "file:{judge}"
[models.words.llamacpp]
threads = 1
[models.judge.llamacpp]
threads = 1
"""


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        files = {"words": tiny("embedding"), "judge": tiny("rerank")}
    except UnavailableError as error:
        pytest.skip(str(error))
    with running(tmp_path_factory.mktemp("vectors"), VECTORS.format(**files)) as url:
        yield url


def counted(daemon: str, name: str) -> float:
    page = httpx.get(f"{daemon}/metrics", trust_env=False).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name
    )


def check(figure: dict[str, Any]) -> None:
    runs = figure["runs"]
    assert 1 <= len(runs) <= sizes.ROUNDS  # a busy box has time for one
    assert figure["lowest"] == min(runs) > 0
    assert figure["highest"] == max(runs)
    assert figure["median"] == pytest.approx(statistics.median(runs))


def test_bench_measures_what_clients_get(daemon: str, tmp_path: Path) -> None:
    chart = tmp_path / "bench.svg"
    before = counted(daemon, "edged_completion_tokens_total")
    ran = edged(
        *("bench", "gpt-4o-mini", "--json", "--seconds", SECONDS, "--clients", "2,1"),
        *("--chart", str(chart), "--url", daemon),
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["model"], found["kind"], found["engine"]) == ("edge-guide", "chat", "llamacpp")
    assert found["missing"] == []
    assert found["others"] == {"open": 0, "answered": 0}

    # What the daemon counted is what was measured, and what it took to begin with.
    prompt, decode = found["prompt"], found["decode"]
    assert [row["clients"] for row in decode] == [1, 2]
    expected = 1 + sizes.FIRST_ANSWER + 2 * len(prompt["ttft_s"]["runs"])
    for row in decode:
        check(row["tokens_per_s"])
        check(row["ttft_s"])
        expected += row["clients"] * row["completion_tokens"] * len(row["ttft_s"]["runs"])
    assert counted(daemon, "edged_completion_tokens_total") - before == expected

    for name in ("tokens_per_s", "ttft_s", "shared_ttft_s"):
        check(prompt[name])
    # All but the other end, and what of the beginning shares a token with it.
    n_end = prompt["prompt_tokens"] - prompt["shared_tokens"]
    assert sizes.END / 2 < n_end < prompt["prompt_tokens"] / 2
    assert prompt["shared_ttft_s"]["median"] < prompt["ttft_s"]["median"]
    for rate, ttft_s in zip(prompt["tokens_per_s"]["runs"], prompt["ttft_s"]["runs"], strict=True):
        assert rate * ttft_s == pytest.approx(prompt["prompt_tokens"], rel=0.1)

    status = httpx.get(f"{daemon}/status", trust_env=False).json()
    model = status["models"][0]
    assert found["settings"] == model["settings"]
    assert found["settings"]["threads"] >= 1
    assert found["settings"]["pool"] >= found["context"]
    assert found["why"] == model["reasons"]
    assert found["memory_bytes"] > 1 << 20
    assert found["hardware"]["cpu"] == status["hardware"]["cpu"]

    said = {each.text for each in ET.parse(chart).iter() if each.text}  # noqa: S314
    assert {"edge-guide", "Decode", "1 client", "2 clients", "new prompt"} <= said
    assert f"{prompt['shared_tokens']:,} tokens in memory" in said


def test_bench_shows_a_page_and_tells_of_others(daemon: str) -> None:
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=daemon, timeout=LIMIT_S, trust_env=False) as client:
            body = {"model": "edge-guide", "prompt": "a", "max_tokens": 8}
            while not over.is_set():
                client.post("/v1/completions", json=body).raise_for_status()

    other = threading.Thread(target=ask)
    other.start()
    try:
        ran = edged("bench", "--seconds", "5", "--clients", "1", EDGED_URL=daemon)
    finally:
        over.set()
        other.join()
    assert ran.returncode == 0, ran.stderr
    for word in ("edge-guide", "thread", "batch", "context", "MEMORY", "llama.cpp on the CPU"):
        assert word in ran.stdout
    assert "others used the daemon meanwhile" in ran.stdout
    assert "1 client" in ran.stdout + ran.stderr
    assert "\x1b" not in ran.stdout + ran.stderr


def test_ctrl_c_ends_bench_at_once_and_leaves_no_request(daemon: str) -> None:
    def n_open() -> int:
        found = httpx.get(f"{daemon}/status", trust_env=False).json()
        return int(found["models"][0]["open"])

    # Others' requests would be taken for its own, and the signal then meets a program that starts.
    assert eventually(lambda: n_open() == 0)
    main, side = pty.openpty()  # on a terminal: with a bar
    process = subprocess.Popen(
        [sys.executable, "-m", "edged", "bench", "--seconds", "600", "--url", daemon],
        stdin=side,
        stdout=subprocess.PIPE,
        stderr=side,
    )
    os.close(side)
    assert eventually(lambda: n_open() > 1 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert out == b""
    assert b"Traceback" not in os.read(main, 1 << 20)
    os.close(main)
    assert eventually(lambda: n_open() == 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--clients", "0"],
        ["--clients", "one"],
        ["--seconds", "1"],
        ["--chart", "bench.png"],
        ["--chart", "/no/such/folder/bench.svg"],
    ],
)
def test_wrong_usage_is_exit_code_2_before_anything_is_measured(arguments: list[str]) -> None:
    ran = edged("bench", *arguments, "--url", f"http://127.0.0.1:{free_port()}")
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr


def test_more_clients_than_places_and_unknown_models_are_one_line(daemon: str) -> None:
    ran = edged("bench", "--clients", "1,9", "--url", daemon)
    [line] = ran.stderr.strip().splitlines()
    assert (ran.returncode, "`parallel`" in line) == (1, True)
    ran = edged("bench", "nobody", "--url", daemon)
    [line] = ran.stderr.strip().splitlines()
    assert (ran.returncode, "edge-guide" in line) == (1, True)


@pytest.mark.parametrize(("model", "kind"), [("words", "embeddings"), ("judge", "rerank")])
def test_bench_counts_inputs(vectors: str, tmp_path: Path, model: str, kind: str) -> None:
    chart = tmp_path / "bench.svg"
    arguments = ("--seconds", "8", "--clients", "1,4", "--chart", str(chart), "--url", vectors)
    ran = edged("bench", model, "--json", *arguments)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["kind"], found["missing"], found["decode"]) == (kind, [], [])
    check(found["alone_s"])
    assert [row["clients"] for row in found["inputs"]] == [1, 4]
    for row in found["inputs"]:
        for name in ("inputs_per_s", "tokens_per_s", "request_s"):
            check(row[name])
        # As many tokens an input as were sent: 32 words and a number, for rerank with a query.
        for inputs, tokens in zip(
            row["inputs_per_s"]["runs"], row["tokens_per_s"]["runs"], strict=True
        ):
            assert 32 <= tokens / inputs <= 256
    said = {each.text for each in ET.parse(chart).iter() if each.text}  # noqa: S314
    assert {model, "Inputs", "1 input alone", "4 clients"} <= said


def test_models_that_run_elsewhere_or_nowhere_are_refused(tmp_path: Path) -> None:
    models = """
    [server]
    listen = ["127.0.0.1:{port}"]
    [models.far]
    upstream = "http://127.0.0.1:9/v1"
    [models.gone]
    gguf = "file:/no/such.gguf"
    """
    with running(tmp_path, models) as url:
        for name, why in (("far", "runs elsewhere"), ("gone", "does not exist")):
            ran = edged("bench", name, "--url", url)
            [line] = ran.stderr.strip().splitlines()
            assert ran.returncode == 1
            assert why in line


# ── with a daemon that plays: what a real one does at its worst ──


async def quick(request: Generate) -> AsyncGenerator[Event, None]:
    n = request.max_tokens or 1
    yield Started(request.id, 20)
    for _ in range(n):
        await asyncio.sleep(0)
        yield Delta(request.id, content="word ")
    yield Finish(request.id, "length", Usage(prompt_tokens=20, completion_tokens=n))


async def measure(box: PlayedBox, seconds: float) -> tuple[Any, list[str]]:
    told: list[str] = []
    async with served(create_app(box)) as port:
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, timeout=LIMIT_S, trust_env=False) as client:
            model = structs.replace(box.status().models[0], kind="chat")
            found = await Measuring(Daemon(client), model, (1, 2), seconds, told.append).run()
            assert box.open == 0
    return found, told


async def test_model_that_comes_to_a_halt_is_left_when_the_time_is_up() -> None:
    box = PlayedBox()

    async def halting(request: Generate) -> AsyncGenerator[Event, None]:
        if len(box.asked) > 2:  # the load and the short answer
            await asyncio.Event().wait()
        async for event in quick(request):
            yield event

    box.scripts["guide"] = halting
    found, told = await measure(box, 0.3)
    assert found.missing == ("first token", "decode, 1 client", "decode, 2 clients")
    assert (found.prompt, found.decode) == (None, ())
    assert len(told) == sizes.n_steps(2)
    assert next(filter(None, told)).startswith("a short answer: ")
    assert len(box.asked) == 3


async def test_rounds_are_equal_and_no_prompt_comes_twice() -> None:
    box = PlayedBox()
    box.scripts["guide"] = quick
    found, told = await measure(box, 60.0)
    assert found.missing == ()
    assert len([line for line in told if line]) == sizes.n_steps(2)
    assert [row.clients for row in found.decode] == [1, 2]
    asked = [(request.prompt.text, request.max_tokens) for _, request in box.asked]
    assert len(set(asked)) == len(asked) == 2 + sizes.ROUNDS * (2 + 1 + 2)
    for row in found.decode:
        n_asked = sum(n == row.completion_tokens for _, n in asked)
        assert n_asked in {3, 6, 9}  # 9: both are as long
    pairs = [text for text, n in asked if n == 1][1:]
    for new, again in zip(pairs[::2], pairs[1::2], strict=True):
        n_same = len(new.split()) - sizes.END
        assert new.split()[:n_same] == again.split()[:n_same]
        assert new.split()[n_same] != again.split()[n_same]
    # A model that repeats itself would be guessed ahead.
    assert all(
        request.sampling.ignore_eos and request.sampling.temperature == 2
        for _, request in box.asked
    )


async def test_model_that_fails_is_an_error_in_words() -> None:
    box = PlayedBox()

    async def failing(request: Generate) -> AsyncGenerator[Event, None]:
        raise ModelFailed("it is broken")
        yield Started(request.id, 0)

    box.scripts["guide"] = failing
    with pytest.raises(BenchError, match="it is broken"):
        await measure(box, 5.0)


async def test_one_client_that_fails_ends_the_others() -> None:
    box = PlayedBox()

    async def failing(request: Generate) -> AsyncGenerator[Event, None]:
        if request.max_tokens != 1 and box.open > 1:
            raise ModelFailed("it is broken")
        async for event in quick(request):
            yield event

    box.scripts["guide"] = failing
    with pytest.raises(BenchError, match="it is broken"):
        await measure(box, 60.0)
    assert box.open == 0
