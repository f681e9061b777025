"""What a scenario is: acts that each side plays in turn, and the rows that their figures fill."""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping

from tests.bench.batched_bench import BatchedBench
from tests.bench.prompts import Prompts
from tests.bench.servers import Server

EDGED = "edged"
LLAMA_SERVER = "llama-server"
LLAMA_CPP_PYTHON = "llama-cpp-python"
BATCHED_BENCH = "llama-batched-bench"
SAME = "llama-server (2)"

Figures = dict[str, float]
Side = Server | BatchedBench
Act = Callable[[Side, Prompts], Awaitable[Figures]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure of the table. Targets bound from below where more is better, else from above.

    ``targets``: by the peer's name, for edged's figure over the peer's. ``limit``: for edged's
    figure itself.
    """

    key: str
    label: str
    unit: str
    more_is_better: bool
    targets: Mapping[str, float] = dataclasses.field(default_factory=dict)
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A way to load a server, in one or more acts that together return a figure for each row.

    The sides take turns act by act: a shared machine's speed changes within seconds. Only the
    first side, edged, must have a figure for every row. ``own_threads``: each side runs with the
    threads that it chooses by itself.
    """

    name: str
    about: str
    rows: tuple[Row, ...]
    acts: tuple[Act, ...]
    sides: tuple[str, ...] = (EDGED, LLAMA_SERVER, LLAMA_CPP_PYTHON)
    own_threads: bool = False


def only_server(side: Side) -> Server:
    """Return the side of a scenario that only servers play."""
    assert isinstance(side, Server)
    return side
