"""Brings the running workers to the plan and keeps them there."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from edged.plan import Diff, Plan
from edged.protocol import Event, Generate
from edged.status import ModelStatus


class Supervisor:
    """One coroutine per model, the only writer of that model's state."""

    async def apply(self, plan: Plan, diff: Diff) -> None:
        """Make `plan` the wanted state; returns at once, drains and loads go on by themselves."""
        raise NotImplementedError

    def generate(self, model: str, request: Generate) -> AsyncGenerator[Event, None]:
        """Yield the events of one generation: `Started`, `Delta`s, one `Finish` or `Failed`.

        `model` is a name, not an alias. Loads the model if needed and waits for a free place.
        Raises, before the first event only: ModelNotFound, ModelFailed, QueueFull, ModelLoading,
        InsufficientMemory, ShuttingDown. Closing the iterator aborts the generation.
        """
        raise NotImplementedError

    def snapshot(self) -> tuple[ModelStatus, ...]:
        """Return every model of the plan, in its order."""
        raise NotImplementedError

    async def settled(self) -> None:
        """Return when every model that loads at startup is ready or failed."""
        raise NotImplementedError

    async def shutdown(self, limit_s: float) -> None:
        """Admit nothing, let open requests finish within `limit_s`, then stop every worker."""
        raise NotImplementedError
