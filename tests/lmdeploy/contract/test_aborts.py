"""Level B: errors of the engine, and aborts in every state, on the real AsyncEngine."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from lmdeploy.messages import ResponseType

from tests.lmdeploy.contract.box import (
    PARALLEL,
    Box,
    abort_many,
    content,
    failed,
    open_request,
    until,
)
from tests.lmdeploy.contract.played import Native

# ── errors of the engine ──


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (ResponseType.INTERNAL_ENGINE_ERROR, "internal_error"),
        (ResponseType.OUT_OF_MEMORY, "internal_error"),
        (ResponseType.NO_QUEUE, "unavailable"),
        (ResponseType.INPUT_LENGTH_ERROR, "context_length_exceeded"),
        (ResponseType.CANCEL, "shutting_down"),
    ],
)
async def test_engine_errors_have_codes(box: Box, status: ResponseType, code: str) -> None:
    box.says("abc")
    box.native.status = status
    assert failed(await box.ask()).code == code


async def test_native_crash_in_python_is_an_internal_error(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boom(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Native, "get_schedule_metrics", boom)  # the watch survives it
    box.says("abc")
    box.native.answer = [object()]  # type: ignore[list-item]
    assert failed(await box.ask()).code == "internal_error"


# ── aborts ──


async def leave_while_it_computes(box: Box) -> None:
    """Open a request, and abort it once the native part is at it."""
    box.native.gate = asyncio.Event()
    box.says("abc")
    events = await open_request(box)
    waiting = asyncio.ensure_future(anext(events))
    await until(lambda: box.native.running == 1)
    waiting.cancel()
    await asyncio.wait({waiting})


async def test_abort_before_anything_runs(box: Box) -> None:
    events = await open_request(box)
    await events.aclose()
    assert not box.native.prompts


async def test_abort_while_it_computes(box: Box) -> None:
    await leave_while_it_computes(box)
    await box.idle()
    assert box.native.cancelled == 1
    assert not box.faults


async def test_abort_in_the_line_for_a_handle(box: Box) -> None:
    box.native.gate = asyncio.Event()
    box.says("abc")
    opened = [await open_request(box, n) for n in range(PARALLEL + 1)]
    waits = [asyncio.ensure_future(anext(each)) for each in opened]
    await until(lambda: box.native.running == PARALLEL)
    waits[-1].cancel()
    await asyncio.wait({waits[-1]})
    assert box.library.pool.sessions == PARALLEL  # LMDeploy itself would keep it for ever
    box.native.gate.set()
    await asyncio.wait(waits)
    for each in opened:
        await each.aclose()


async def test_five_hundred_aborts_leave_nothing(box: Box) -> None:
    reached = await abort_many(box, 500, random.Random(7))
    assert reached.total() == 500
    assert reached["Delta"] > 200  # in the middle of an answer
    await box.idle()
    assert not box.faults
    assert box.native.running == 0
    box.says("still here")
    assert content(await box.ask()) == "still here"


async def test_engine_that_never_lets_go_costs_the_worker(folder: Path) -> None:
    made = Box(folder, abort_s=0.3)
    await made.engine.load(made.launch, lambda _: None)
    made.native.is_deaf = True
    await leave_while_it_computes(made)
    assert made.faults == 1


async def test_close_fails_what_is_open(box: Box) -> None:
    box.native.gate = asyncio.Event()
    box.says("abc")
    asking = asyncio.ensure_future(box.ask())
    await until(lambda: box.native.running == 1)
    await box.engine.close()
    assert failed(await asking).code == "shutting_down"
    assert failed(await box.ask()).code == "shutting_down"
