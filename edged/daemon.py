"""The composition root: from a path to a serving appliance, and down again."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from edged.plan import Plan
from edged.protocol import Event, Generate
from edged.status import Status


class Daemon:
    """Everything that runs in the parent process; the `Box` that the api sees."""

    plan: Plan

    def generate(self, name: str, request: Generate) -> AsyncGenerator[Event, None]:
        """As `Supervisor.generate`, for a name or an alias.

        Fills in the model's sampling settings where the request is silent. Raises ModelNotFound
        at the first step when no model has this name.
        """
        raise NotImplementedError

    def status(self) -> Status:
        """Return what `/status` shows."""
        raise NotImplementedError

    def ready(self) -> tuple[bool, list[str]]:
        """Return whether every startup model is ready, and one line for each that is not."""
        raise NotImplementedError


def run(config_path: str | None) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code: 0, 1, or 78 for a bad config."""
    raise NotImplementedError
