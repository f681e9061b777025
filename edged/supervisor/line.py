"""The line of one model: requests that wait for a place at its worker, first come first served."""

from __future__ import annotations

import asyncio
import math
from collections import deque

from edged.errors import EdgedError, QueueFull
from edged.protocol import Request
from edged.supervisor.worker_process import WorkerProcess

# One request more than the engine decodes at once is with the worker, tokenized and ready to
# take the next free place without a round trip.
_AHEAD = 1


class Ticket:
    """One request's place: first in the line, then with a worker, then nowhere.

    `request` is None for somebody who only waits for the model. A `suspect` has killed a worker,
    perhaps: no two of them are with a worker at once.
    """

    def __init__(self, joined: float, request: Request | None, *, suspect: bool = False) -> None:
        self.joined = joined
        self.request = request
        self.suspect = suspect
        self.admitted_at: float | None = None
        self.worker: asyncio.Future[WorkerProcess] = asyncio.get_running_loop().create_future()


class Line:
    """Who waits and who is with a worker. One owner: the model's keeper, in the loop.

    There may be two workers: one that serves and one that only finishes what it has.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._waiting: deque[Ticket] = deque()
        self._admitted: dict[Ticket, WorkerProcess] = {}
        self._service_s = 1.0  # moving average of what one request took

    @property
    def waiting(self) -> int:
        """Requests that no worker has."""
        return len(self._waiting)

    @property
    def waiting_since(self) -> float | None:
        """When the first one in the line came; None while nobody waits."""
        return self._waiting[0].joined if self._waiting else None

    @property
    def admitted(self) -> int:
        """Requests that were handed to any worker and did not end."""
        return len(self._admitted)

    def held_by(self, worker: WorkerProcess) -> list[Ticket]:
        """Return the requests that were handed to this worker and did not end."""
        return [ticket for ticket, holder in self._admitted.items() if holder is worker]

    def join(
        self,
        now: float,
        *,
        parallel: int,
        queue: int,
        request: Request | None = None,
        suspect: bool = False,
    ) -> Ticket:
        """Return a ticket at the end of the line.

        Raises QueueFull when `parallel` + `queue` requests are open already.
        """
        n_open = len(self._waiting) + len(self._admitted)
        if n_open >= parallel + queue:
            rounds = (n_open - parallel + 1) / parallel
            raise QueueFull(
                f"{n_open} requests are open for model {self._model!r}, "
                f"{parallel} at a time and {queue} waiting are allowed; try again later",
                retry_after_s=min(60, max(1, math.ceil(rounds * self._service_s))),
            )
        ticket = Ticket(now, request, suspect=suspect)
        self._waiting.append(ticket)
        return ticket

    def admit(self, worker: WorkerProcess, now: float, *, parallel: int) -> None:
        """Hand the worker to the first ones in the line while there are places."""
        held = self.held_by(worker)
        places = parallel + _AHEAD - len(held)
        under_watch = any(ticket.suspect for ticket in held)
        passed_over: list[Ticket] = []
        while self._waiting and places > 0:
            ticket = self._waiting.popleft()
            if ticket.suspect and under_watch:
                passed_over.append(ticket)
                continue
            under_watch = under_watch or ticket.suspect
            places -= 1
            ticket.admitted_at = now
            self._admitted[ticket] = worker
            ticket.worker.set_result(worker)
        self._waiting.extendleft(reversed(passed_over))

    def return_to_front(self, ticket: Ticket) -> None:
        """Take back a ticket whose worker died before it was given the request."""
        self._admitted.pop(ticket, None)
        ticket.admitted_at = None
        ticket.worker = asyncio.get_running_loop().create_future()
        self._waiting.appendleft(ticket)

    def leave(self, ticket: Ticket, now: float) -> None:
        """Forget a ticket: its request ended, in whatever way."""
        if ticket in self._admitted:
            del self._admitted[ticket]
            if ticket.admitted_at is not None:
                self._service_s += 0.2 * (now - ticket.admitted_at - self._service_s)
        elif ticket in self._waiting:
            self._waiting.remove(ticket)

    def dismiss(self, error: EdgedError) -> None:
        """End everybody who waits with `error`."""
        while self._waiting:
            future = self._waiting.popleft().worker
            # An exception object collects a traceback per raise: one for each request.
            future.set_exception(
                type(error)(error.message, param=error.param, retry_after_s=error.retry_after_s)
            )
            future.exception()  # its reader may leave at this very moment: not a forgotten error
