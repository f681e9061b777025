"""The line of one model: who is next, who is refused, and nobody is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged import errors
from edged.protocol import Launch
from edged.supervisor.line import Line, Ticket
from edged.supervisor.worker_process import WorkerProcess

LAUNCH = Launch("m", "llamacpp", "/m.gguf", "1", context=10, parallel=2, pool=20)


def worker() -> WorkerProcess:
    return WorkerProcess(LAUNCH)


async def test_first_come_first_served_with_one_ahead() -> None:
    line, served = Line("m"), worker()
    tickets = [line.join(0, parallel=2, queue=10) for _ in range(5)]
    line.admit(served, 0, parallel=2)
    assert [ticket.worker.done() for ticket in tickets] == [True, True, True, False, False]
    assert (line.admitted, line.waiting) == (3, 2)
    line.leave(tickets[1], 1)
    line.admit(served, 1, parallel=2)
    assert tickets[3].worker.result() is served
    assert not tickets[4].worker.done()


async def test_line_is_full_at_parallel_and_queue() -> None:
    line = Line("m")
    for _ in range(5):
        line.join(0, parallel=2, queue=3)
    with pytest.raises(errors.QueueFull, match="2 at a time and 3 waiting"):
        line.join(0, parallel=2, queue=3)


async def test_wait_that_is_told_grows_with_line_and_service() -> None:
    def told(service_s: float, n_open: int) -> int | None:
        line = Line("m")
        for _ in range(50):  # the average follows what requests take
            ticket = line.join(0, parallel=1, queue=1)
            line.admit(worker(), 0, parallel=1)
            line.leave(ticket, service_s)
        for _ in range(n_open):
            line.join(0, parallel=1, queue=n_open - 1)
        with pytest.raises(errors.QueueFull) as caught:
            line.join(0, parallel=1, queue=n_open - 1)
        return caught.value.retry_after_s

    assert told(0.01, 2) == 1
    assert told(5, 2) == 10
    assert told(5, 4) == 20
    assert told(1000, 100) == 60


async def test_ticket_that_comes_back_is_first_again() -> None:
    line, dead, alive = Line("m"), worker(), worker()
    first, second = (line.join(0, parallel=2, queue=10) for _ in range(2))
    line.admit(dead, 0, parallel=2)
    line.return_to_front(first)
    third = line.join(0, parallel=2, queue=10)
    line.leave(second, 0)
    line.admit(alive, 1, parallel=0)
    assert first.worker.result() is alive
    assert not third.worker.done()


async def test_dismissed_requests_get_an_error_each_of_their_own() -> None:
    line = Line("m")
    tickets = [line.join(0, parallel=1, queue=10) for _ in range(3)]
    line.dismiss(errors.InsufficientMemory("no room", retry_after_s=7))
    raised = [ticket.worker.exception() for ticket in tickets]
    assert all(isinstance(error, errors.InsufficientMemory) for error in raised)
    assert {getattr(error, "retry_after_s", None) for error in raised} == {7}
    assert len({id(error) for error in raised}) == 3
    assert line.waiting == 0


@given(
    st.lists(st.tuples(st.sampled_from(["join", "admit", "leave", "return"]), st.integers(0, 9)))
)
async def test_counts_hold_whatever_happens(acts: list[tuple[str, int]]) -> None:
    line, served = Line("m"), worker()
    here: list[Ticket] = []
    for act, which in acts:
        if act == "join":
            if len(here) >= 5:
                with pytest.raises(errors.QueueFull):
                    line.join(0, parallel=2, queue=3)
            else:
                here.append(line.join(0, parallel=2, queue=3))
        elif act == "admit":
            line.admit(served, 0, parallel=2)
        elif here:
            ticket = here[which % len(here)]
            if act == "leave":
                here.remove(ticket)
                line.leave(ticket, 1)
                line.leave(ticket, 1)  # leaving twice changes nothing
            elif ticket.worker.done():
                line.return_to_front(ticket)
        assert line.waiting + line.admitted == len(here)
        assert line.admitted == sum(ticket.worker.done() for ticket in here) <= 3
