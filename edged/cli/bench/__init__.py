"""`edged bench`: how fast the box is with a model, in about a minute."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edged.cli.bench import sizes
from edged.cli.bench.daemon import BenchError, Daemon
from edged.cli.bench.figures import Report
from edged.cli.bench.measuring import Found, Measuring
from edged.cli.bench.page import page, svg
from edged.cli.client import Json, Url, connected_async, fail
from edged.status import ModelStatus, Status

_LIMIT_S = 3600.0  # of one answer; `Measuring` has the real limits
_LEAST_S, _MOST_S = 5.0, 3600.0


def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Without it the first one that can be measured."),
    ] = None,
    clients: Annotated[
        str | None,
        typer.Option(metavar="1,2,4", help="How many at once; without it, up to `parallel`."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=_LEAST_S, max=_MOST_S, help="About so long.")
    ] = 60.0,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the figures, too.")
    ] = None,
    *,
    url: Url = None,
    json_: Json = False,
) -> None:
    """Measure a model as its clients have it: speed alone and together, first token, memory.

    Every prompt is new, so that no cache makes figures better than they are. Answers of others
    are slower meanwhile; Ctrl-C ends it at once.
    """
    counts = _counts(clients)
    if chart is not None:
        _check_chart(chart)
    try:
        report = asyncio.run(_measure(url, model, counts, seconds))
    except BenchError as error:
        fail(str(error))
    except KeyboardInterrupt:  # the connections are closed, and so the daemon aborts
        print("edged: stopped; nothing of it runs any more", file=sys.stderr)
        raise typer.Exit(1) from None
    if json_:
        print(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        Console().print(page(report))
    if chart is not None:
        try:
            chart.write_text(svg(report), encoding="utf-8")
        except OSError as error:
            fail(f"{chart} cannot be written: {error.strerror}")
        print(f"edged: the chart is in {chart}", file=sys.stderr)


def _counts(clients: str | None) -> tuple[int, ...]:
    if clients is None:
        return ()
    try:
        counts = tuple(int(part) for part in clients.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise typer.BadParameter("write it like 1,2,4", param_hint="--clients")
    return counts


def _check_chart(chart: Path) -> None:
    """Refuse before a minute is gone."""
    if chart.suffix.lower() != ".svg":
        raise typer.BadParameter("the chart is an SVG: name it FILE.svg", param_hint="--chart")
    if not chart.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {chart.parent}", param_hint="--chart")


async def _measure(
    url: str | None, name: str | None, wanted: tuple[int, ...], seconds: float
) -> Report:
    async with connected_async(url, limit_s=_LIMIT_S) as client:
        daemon = Daemon(client)
        status = await daemon.status()
        model = _model(status, None if name is None else await daemon.resolve(name))
        if wanted and max(wanted) > model.parallel:
            raise BenchError(
                f"{max(wanted)} clients would wait for each other: {model.name} answers "
                f"{model.parallel} at once (`parallel` in models.toml)"
            )
        counts = sizes.clients(wanted, model.parallel)
        with _progress(model.name, sizes.n_steps(len(counts))) as tell:
            found = await Measuring(daemon, model, counts, seconds, tell).run()
        status = await daemon.status()
        return _report(status, _model(status, model.name), found)


def _model(status: Status, name: str | None) -> ModelStatus:
    """Return the model of this name, or the first that can be measured, one that chats if any."""
    models = [model for model in status.models if name in (None, model.name)]
    measurable = [model for model in models if model.kind is not None]
    measurable.sort(key=lambda model: model.kind != "chat")
    if not models:
        raise BenchError("no models; add a [models.NAME] table to models.toml")
    if not measurable:
        first = models[0]
        why = first.error or "it runs elsewhere; measure it there"
        raise BenchError(f"{first.name} cannot be measured: {why}")
    chosen = measurable[0]
    if chosen.context < sizes.LEAST_CONTEXT:
        raise BenchError(
            f"{chosen.name} has a context of {chosen.context} tokens, and measuring takes "
            f"{sizes.LEAST_CONTEXT} at least"
        )
    return chosen


def _report(status: Status, model: ModelStatus, found: Found) -> Report:
    assert model.kind is not None
    return Report(
        edged=status.version,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seconds=found.seconds,
        model=model.name,
        kind=model.kind,
        engine=model.engine or "",
        build=model.build,
        why=model.reasons,
        context=model.context,
        parallel=model.parallel,
        settings=model.settings,
        threads_reason=model.stats.threads_reason if model.stats else "",
        hardware=status.hardware,
        load_s=model.load_s,
        memory_bytes=model.memory_bytes,
        daemon_memory_bytes=status.memory_bytes,
        prompt=found.prompt,
        decode=found.decode,
        alone_s=found.alone_s,
        inputs=found.inputs,
        others=found.others,
        missing=found.missing,
    )


@contextlib.contextmanager
def _progress(model: str, n_steps: int) -> Iterator[Callable[[str], None]]:
    """Give a function that tells what one of the steps came to; "": there was no time for it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"waiting for {model}", total=n_steps)

        def tell(line: str) -> None:
            progress.update(task, advance=1, description=line or f"measuring {model}")

        yield tell


def _print_line(line: str) -> None:
    if line:
        print(line, file=sys.stderr, flush=True)
