"""What an engine is: it turns a `Generate` into events.

An engine knows no HTTP dialect. It lives in the worker's asyncio loop; whatever blocks (decode,
compile, tokenizing a long prompt) runs in threads of its own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from edged.protocol import AdapterFile, Call, Event, Generate, Launch, Ready, Reply, Stats


class BadModelError(Exception):
    """The model cannot be loaded, now or ever: not a model file, truncated, unknown shape."""


class EngineMissingError(Exception):
    """The engine's library is not installed in this environment."""


class Engine(Protocol):
    """One loaded model. `load` is called once, before anything else."""

    async def load(self, launch: Launch, progress: Callable[[float], None]) -> Ready:
        """Load and warm up; report 0…1 through `progress` (called in the loop).

        Raises BadModelError or EngineMissingError; anything else counts as a passing fault.
        """
        ...

    def adapt(self, adapters: tuple[AdapterFile, ...]) -> None:
        """Have these LoRA adapters and no others; returns at once, `stats` tells how they are.

        Requests that run keep the version that they began with. Called only after `load`, and
        never of an engine whose models cannot have any: the plan refuses them.
        """
        ...

    def generate(self, request: Generate) -> AsyncGenerator[Event, None]:
        """Yield `Started`, `Delta`s and exactly one `Finish` or `Failed`.

        Closing the generator aborts: the sequence leaves at the next step.
        """
        ...

    async def call(self, request: Call) -> Reply:
        """Answer a request that is no generation; cancelling it aborts.

        Raises EdgedError, WrongModelKind for a verb that this kind of model does not have.
        """
        ...

    def stats(self) -> Stats:
        """Return counters now; cheap, never waits for the engine thread."""
        ...

    async def close(self, *, save_s: float = 0.0) -> None:
        """Stop the engine's threads and free the model; open generations end as `Failed`.

        It may take up to `save_s` to save what the next worker of this model has use for.
        """
        ...
