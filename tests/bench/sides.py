"""Who takes part: starts the sides of a scenario by their names, warmed up."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from tests.bench.batched_bench import batched_bench
from tests.bench.client import chat
from tests.bench.prompts import user
from tests.bench.python_peer import llama_cpp_python
from tests.bench.scenario import (
    BATCHED_BENCH,
    EDGED,
    LLAMA_CPP_PYTHON,
    LLAMA_SERVER,
    SAME,
    Side,
)
from tests.bench.servers import Launch, Settings, edged, llama_server, running

_SERVERS: dict[str, Callable[[Settings, Path], Launch]] = {
    EDGED: edged,
    LLAMA_SERVER: llama_server,
    SAME: lambda settings, folder: llama_server(settings, folder, SAME),
    LLAMA_CPP_PYTHON: llama_cpp_python,
}


@contextlib.asynccontextmanager
async def standing(
    names: Sequence[str], settings: Settings, folder: Path
) -> AsyncIterator[dict[str, Side]]:
    """Run these sides, all at once; who has nothing to do takes no processor time."""
    found: dict[str, Side] = {}
    async with contextlib.AsyncExitStack() as stack:
        for name in names:
            if name == BATCHED_BENCH:
                found[name] = batched_bench(settings, name)
                continue
            launch = _SERVERS[name](settings, folder / name.replace(" ", "-"))
            server = await stack.enter_async_context(running(launch))
            await chat(server.address, [user(f"Warm up {name}, please.")], 8)
            found[name] = server
        yield found
