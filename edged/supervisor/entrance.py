"""How requests come to a model's worker: who may come in, who waits how long, who is refused.

The keeper tells it how the model is (`note`) and hands out workers through the line; nothing here
decides about workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable

from edged import errors
from edged.config import Model
from edged.protocol import LAST, Event, Failed, Request
from edged.status import State
from edged.supervisor.lifecycle import Limits
from edged.supervisor.line import Line, Ticket
from edged.supervisor.poison import Poison
from edged.supervisor.worker_process import WorkerProcess


class Entrance:
    """One model's.

    `on_change` is called whenever somebody came or left, `why_closed` says what whoever comes is
    told instead of being let in.
    """

    def __init__(
        self,
        model: str,
        limits: Limits,
        on_change: Callable[[], None],
        why_closed: Callable[[], errors.EdgedError | None],
    ) -> None:
        self.line = Line(model)
        self.last_used = time.monotonic()
        self.state: State = "stopped"
        self.error: str | None = None  # why it does not serve
        self._name = model
        self._limits = limits
        self._on_change = on_change
        self._why_closed = why_closed
        self._poison = Poison(limits.poison_s)
        self._unready_at = self.last_used

    def note(self, state: State, error: str | None) -> None:
        """Take note of how the model is; a model that was ready gets its time to load anew."""
        if self.state == "ready" != state:
            self._unready_at = time.monotonic()
        self.state, self.error = state, error

    def died(self, worker: WorkerProcess) -> None:
        """Note that a worker died of itself, whose requests have not left yet."""
        held = [ticket.request for ticket in self.line.held_by(worker) if ticket.request]
        self._poison.died(held, time.monotonic())

    async def generate(self, model: Model, request: Request) -> AsyncGenerator[Event, None]:
        """See `Supervisor.generate`."""
        now = time.monotonic()
        deaths = self._poison.deaths(request, now)
        if self._poison.is_poison(request, now):
            raise errors.PoisonedRequest(
                f"this very request ended the worker of model {self._name!r} {deaths} times; it "
                f"is refused for {self._limits.poison_s / 60:.0f} minutes, for the sake of others"
            )
        ticket = self._join(model, request, suspect=deaths > 0)
        try:
            worker = await self._place(ticket)
            while not worker.alive:  # it died after it was handed out: nothing is lost yet
                self.line.return_to_front(ticket)
                self._on_change()
                worker = await self._place(ticket)
            async with contextlib.aclosing(worker.generate(request)) as events:
                async for event in events:
                    if type(event) in LAST and not isinstance(event, Failed):
                        self._poison.answered(request)
                    yield event
        finally:
            self._leave(ticket)

    async def wait(self, model: Model) -> None:
        """Wait for a worker that serves, and ask nothing of it."""
        ticket = self._join(model, None)
        try:
            await self._place(ticket)
        finally:
            self._leave(ticket)

    def _join(self, model: Model, request: Request | None, *, suspect: bool = False) -> Ticket:
        if (error := self._why_closed()) is not None:
            raise error
        now = time.monotonic()
        ticket = self.line.join(
            now, parallel=model.parallel, queue=model.queue, request=request, suspect=suspect
        )
        self._on_change()
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        self.last_used = time.monotonic()
        self.line.leave(ticket, self.last_used)
        self._on_change()

    async def _place(self, ticket: Ticket) -> WorkerProcess:
        while not ticket.worker.done():
            now = time.monotonic()
            if self.state == "ready":
                left_s = ticket.joined + self._limits.queue_wait_s - now
            else:
                left_s = max(ticket.joined, self._unready_at) + self._limits.start_wait_s - now
            if left_s <= 0:
                raise self._too_late()
            await asyncio.wait([ticket.worker], timeout=left_s)
        return ticket.worker.result()

    def _too_late(self) -> errors.EdgedError:
        if self.state == "ready":
            waited_s = self._limits.queue_wait_s
            return errors.ServiceUnavailable(
                f"model {self._name!r} was busy for {waited_s:.0f} s; try again later",
                retry_after_s=30,
            )
        why = f" ({self.error})" if self.error else ""
        return errors.ModelLoading(
            f"model {self._name!r} is {self.state} and was not ready "
            f"within {self._limits.start_wait_s:.0f} s{why}; try again later",
            retry_after_s=30,
        )
