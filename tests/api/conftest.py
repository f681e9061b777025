"""The real app behind a real uvicorn on a random port, over a small box that plays events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from edged import errors
from edged.api import upstream
from edged.api.access import Access
from edged.api.app import create_app
from edged.api.box import Applied
from edged.config import Config, Model, Server, Source
from edged.hardware import Cpu, Hardware, Memory
from edged.metrics import Metrics
from edged.plan import Diff, ModelPlan, Plan
from edged.protocol import (
    Delta,
    Event,
    Finish,
    Generate,
    Launch,
    LlamaCppLaunch,
    Sampling,
    Started,
    Timings,
    Usage,
)
from edged.status import ConfigStatus, FetchStatus, ModelStatus, Status
from edged.store.ageing import Moment
from edged.store.responses import Limits, Responses

LIMIT_S = 60.0

HARDWARE = Hardware(
    cpu=Cpu("a cpu", "x86_64", 2, 2, 2),
    memory=Memory(8 << 30, 8 << 30, 4 << 30),
)

Script = Callable[[Generate], AsyncGenerator[Event, None]]


async def hello(request: Generate) -> AsyncGenerator[Event, None]:
    """Answer "Hello, wörld" in three pieces, with some reasoning first."""
    yield Started(request.id, 7)
    yield Delta(request.id, reasoning="hm")
    for piece in ("Hello", ", ", "wörld\n\n\u2028\x00"):
        await asyncio.sleep(0)
        yield Delta(request.id, content=piece)
    yield Finish(
        request.id,
        "stop",
        Usage(prompt_tokens=7, completion_tokens=4, cached_tokens=3, reasoning_tokens=1),
        Timings(queue_ms=1.5, prefill_ms=8.0, decode_ms=40.0),
    )


def plan_of(*models: Model, server: Server | None = None) -> Plan:
    plans = {}
    names = {}
    for model in models:
        launch = Launch(
            model=model.name,
            engine="llamacpp",
            path="/nowhere.gguf",
            file_id="1-1",
            context=model.context,
            parallel=model.parallel,
            pool=model.context,
            llamacpp=LlamaCppLaunch(threads=1, threads_batch=1),
        )
        if model.upstream:
            plans[model.name] = ModelPlan(model, "upstream", reasons=("it is an upstream",))
        else:
            plans[model.name] = ModelPlan(model, "llamacpp", launch, reasons=("no GPU here",))
        names |= dict.fromkeys((model.name, *model.aliases), model.name)
    config = Config("models.toml", server or Server(), models={m.name: m for m in models})
    return Plan(config, HARDWARE, plans, names)


class PlayedBox:
    """A box whose models play scripts of real events; it remembers what was asked."""

    def __init__(self, state: Path = Path("/nowhere")) -> None:
        gguf = Source("file", "/nowhere.gguf")
        self.plan = plan_of(
            Model("guide", gguf, aliases=("gpt-4o-mini",), sampling=Sampling(temperature=0.25)),
            Model("Qwen/Qwen3-8B", gguf, aliases=("other/alias",)),
        )
        self.metrics = Metrics()
        self.access = Access(metrics=self.metrics, wall=lambda: self.now_s)
        self.ca_pem: bytes | None = None
        self.kept = Limits(keep_s=30 * 86400.0, max_bytes=256 << 20)
        self.now_s = 1_800_000_000.0
        self.responses = Responses(
            state / "edged" / "responses.db",
            lambda: self.kept,
            lambda: Moment(self.now_s, self.now_s, "boot"),
        )
        self.scripts: dict[str, Script] = {"guide": hello, "Qwen/Qwen3-8B": hello}
        self.asked: list[tuple[str, Generate]] = []
        self.open = 0
        self.closed = asyncio.Event()
        self.is_ready = True
        self.problem: str | None = None
        self.fetches: dict[str, FetchStatus] = {}
        self.admin_socket = ""
        self.orders: list[tuple[str, str]] = []

    async def generate(self, name: str, request: Generate) -> AsyncGenerator[Event, None]:
        self.asked.append((name, request))
        self.open += 1
        try:
            async with contextlib.aclosing(self.scripts[name](request)) as events:
                async for event in events:
                    yield event
        finally:
            self.open -= 1
            self.closed.set()

    def fetching(self, name: str) -> FetchStatus | None:
        return self.fetches.get(name)

    async def reload(self) -> Applied:
        if self.problem:
            raise errors.ConfigRefused(self.problem)
        return Applied(4, 0.001, Diff(added=("new",)))

    async def load(self, name: str) -> None:
        self.orders.append(("load", self.plan.resolve(name).model.name))

    async def unload(self, name: str) -> None:
        self.orders.append(("unload", self.plan.resolve(name).model.name))

    async def drain(self, name: str) -> None:
        self.orders.append(("drain", self.plan.resolve(name).model.name))

    def ca(self) -> bytes | None:
        return self.ca_pem

    def ready(self) -> tuple[bool, list[str]]:
        return self.is_ready, [] if self.is_ready else ["guide: starting"]

    def status(self) -> Status:
        return Status(
            version="0",
            pid=1,
            uptime_s=1.0,
            ready=self.is_ready,
            waiting_for=(),
            listen=("127.0.0.1:8000",),
            memory_bytes=1 << 20,
            config=ConfigStatus("models.toml", 3, 0.0, self.problem),
            hardware=HARDWARE,
            models=tuple(
                ModelStatus(
                    name=name,
                    state="ready",
                    engine=plan.engine,
                    aliases=plan.model.aliases,
                    reasons=plan.reasons,
                    error=None,
                    since_s=1.0,
                    pid=2,
                    context=plan.model.context,
                    parallel=plan.model.parallel,
                    memory_bytes=5 << 20,
                    open=self.open,
                    queued=0,
                    restarts=2,
                    progress=None,
                    load_s=0.5,
                    build="llama.cpp",
                    stats=None,
                    stderr_tail=(),
                )
                for name, plan in self.plan.models.items()
            ),
        )


def failing(error: errors.EdgedError) -> Script:
    """Return a script that raises before its first event."""

    async def script(request: Generate) -> AsyncGenerator[Event, None]:
        raise error
        yield Started(request.id, 0)

    return script


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[int]:
    """Serve an ASGI app with uvicorn's protocol on a random loopback port and give the port."""
    config = uvicorn.Config(app, log_config=None, access_log=False)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: HttpToolsProtocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        await eventually(lambda: not state.connections and not state.tasks)
        await server.wait_closed()
        if isinstance(app, Litestar):
            await upstream.close(app)


@pytest.fixture
def box(tmp_path: Path) -> PlayedBox:
    return PlayedBox(tmp_path)


@pytest.fixture
async def port(box: PlayedBox) -> AsyncIterator[int]:
    async with served(create_app(box)) as port:
        yield port
    await box.responses.close()


@pytest.fixture
async def http(port: int) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S, trust_env=False
    ) as client:
        yield client


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds, with a generous limit."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - the condition may be anything
            await asyncio.sleep(0.01)
