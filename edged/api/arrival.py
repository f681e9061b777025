"""A model whose files are still being fetched: what its clients hear, and who may wait."""

from __future__ import annotations

import asyncio

from edged import errors
from edged.api.box import Box
from edged.config.values import format_bytes
from edged.errors import EdgedError
from edged.status import FetchStatus

SOON_S = 120.0  # a stream waits for files that arrive within; as long as for a model that loads
_MOST_WAIT_S = 600.0  # … and no longer, when they turn out to take their time
_LOOK_S = 0.2
_RETRY_S = (5, 600)  # the shortest and longest time that a client is sent away for
_RETRY_UNKNOWN_S = 30


async def wait_for_files(box: Box, model: str) -> None:
    """Return when the files of `model` are there, or at once where they will not be soon."""
    end = asyncio.get_running_loop().time() + _MOST_WAIT_S
    while (fetch := box.fetching(model)) is not None and _is_soon(fetch):
        if asyncio.get_running_loop().time() >= end:
            return
        await asyncio.sleep(_LOOK_S)


def _is_soon(fetch: FetchStatus) -> bool:
    return fetch.error is None and fetch.left_s is not None and fetch.left_s <= SOON_S


def refusal(model: str, fetch: FetchStatus) -> EdgedError:
    """Return what a client is told that does not wait, with when to come again."""
    if fetch.is_hopeless:
        return errors.ModelFailed(f"model {model!r} cannot be fetched: {fetch.error}")
    left = fetch.left_s if fetch.left_s is not None else fetch.retry_in_s
    low, high = _RETRY_S
    wait_s = _RETRY_UNKNOWN_S if left is None else min(max(int(left) + 1, low), high)
    return errors.ModelLoading(
        f"model {model!r} is being fetched: {said(fetch)}; try again later", retry_after_s=wait_s
    )


def said(fetch: FetchStatus) -> str:
    """Return how far it is, for a person."""
    if fetch.error is not None:
        again = "" if fetch.retry_in_s is None else f", next try in {fetch.retry_in_s:.0f} s"
        return f"{fetch.error}{again}"
    if not fetch.total_bytes:
        return fetch.note or "it will begin in a moment"
    share = fetch.done_bytes / fetch.total_bytes
    parts = [f"{share:.0%} of {format_bytes(fetch.total_bytes)}"]
    if fetch.left_s is not None:
        parts.append(f"about {_duration(fetch.left_s)} left")
    if fetch.note:
        parts.append(fetch.note)
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"  # noqa: PLR2004
