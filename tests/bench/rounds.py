"""Plays a scenario: interleaved rounds, and what others took of the box meanwhile."""

import asyncio
import time
from collections.abc import Mapping, Sequence

from rich.progress import Progress

from tests.bench.client import BenchError
from tests.bench.others import Taken, watched
from tests.bench.prompts import Prompts
from tests.bench.report import Result, Section
from tests.bench.scenario import Act, Figures, Scenario, Side

ACT_LIMIT_S = 600.0


async def play(
    scenario: Scenario, sides: Sequence[Side], n_pairs: int, progress: Progress
) -> Section:
    """Play ``n_pairs`` rounds; in each act the sides take turns in the order A B C C B A A ..."""
    figures: dict[str, list[Figures]] = {side.name: [] for side in sides}
    taken: dict[str, list[Taken]] = {side.name: [] for side in sides}
    task = progress.add_task(scenario.name, total=n_pairs * len(sides) * len(scenario.acts))
    for pair in range(n_pairs):
        # All sides of a pair get the same texts; the time makes them new to a used cache.
        prompts = Prompts(f"{time.time_ns()} {pair}")
        for side in sides:
            figures[side.name].append({})
        for act in scenario.acts:
            for side in sides if pair % 2 == 0 else sides[::-1]:
                with watched() as meanwhile:
                    figures[side.name][-1] |= await _act(act, side, prompts, scenario.name)
                taken[side.name].append(meanwhile)
                progress.advance(task)
    return Section(scenario.name, scenario.about, _results(scenario, figures), taken)


async def _act(act: Act, side: Side, prompts: Prompts, name: str) -> Figures:
    try:
        async with asyncio.timeout(ACT_LIMIT_S):
            return await act(side, prompts)
    except (BenchError, TimeoutError, OSError, EOFError) as error:
        reason = f"{name} on {side.name}: {str(error) or type(error).__name__}"
        raise BenchError(reason) from error


def _results(scenario: Scenario, figures: Mapping[str, list[Figures]]) -> tuple[Result, ...]:
    first, *peers = figures
    return tuple(
        Result(
            row,
            {first: tuple(round_[row.key] for round_ in figures[first])}
            | {
                peer: tuple(round_[row.key] for round_ in figures[peer])
                for peer in peers
                if all(row.key in round_ for round_ in figures[peer])
            },
        )
        for row in scenario.rows
    )
