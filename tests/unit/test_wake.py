from __future__ import annotations

import asyncio

import pytest

from edged.wake import Wake


async def _turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_was_set_before_is_not_lost_and_counts_once() -> None:
    wake = Wake()
    wake.set()
    wake.set()
    await asyncio.wait_for(wake.wait(), 5)
    again = asyncio.create_task(wake.wait())
    await _turn()
    assert not again.done()
    wake.set()
    await asyncio.wait_for(again, 5)


async def test_what_is_set_for_a_waiter_that_was_cancelled_is_kept_for_the_next() -> None:
    wake = Wake()
    first = asyncio.create_task(wake.wait())
    await _turn()
    wake.set()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.wait_for(wake.wait(), 5)


async def test_it_is_set_again_while_its_waiter_is_on_the_way() -> None:
    wake = Wake()
    waiter = asyncio.create_task(wake.wait())
    await _turn()
    wake.set()
    wake.set()  # the future is done, the task has not run yet
    await asyncio.wait_for(waiter, 5)
    later = asyncio.create_task(wake.wait())
    await _turn()
    assert not later.done()
    later.cancel()
