"""``python -m tests.bench``: measure edged beside its peers; print, keep and document it."""

import argparse
import asyncio
import dataclasses
import itertools
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.bench import daemon_cost, greedy, report, rest
from tests.bench.client import BenchError
from tests.bench.others import watched
from tests.bench.rounds import play
from tests.bench.scenario import EDGED, LLAMA_SERVER, SAME, Scenario
from tests.bench.scenarios import SCENARIOS
from tests.bench.servers import Settings
from tests.bench.sides import standing
from tests.models import UnavailableError, bench_model

NAMES = (*SCENARIOS, "daemon", "rest", "greedy")
LOOK_S = 2.0
PLAIN_WIDTH = 150


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--scenarios", default=",".join(NAMES), help=f"some of {','.join(NAMES)}")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved rounds per side")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each engine")
    parser.add_argument("--context", type=int, default=2048, help="tokens per request")
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--batch", type=int, default=512, help="batch and ubatch of each engine")
    parser.add_argument("--peer-args", default="", help="more for llama-server: --peer-args=--x")
    parser.add_argument("--json", type=Path, help="write the raw figures here")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/benchmarks.md alone")
    parser.add_argument(
        "--same", action="store_true", help="llama-server on both sides: shows the noise; no docs"
    )
    options = parser.parse_args()
    options.names = options.scenarios.split(",")
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"unknown scenarios: {', '.join(sorted(unknown))}")
    if options.pairs < 1:
        parser.error("--pairs must be at least 1")
    return options


Keep = Callable[[report.Section], None]


async def measure(
    options: argparse.Namespace, settings: Settings, folder: Path, progress: Progress, keep: Keep
) -> None:
    """Run the chosen scenarios in the order of the table of targets; keep each as it ends."""
    chosen = [scenario for name, scenario in SCENARIOS.items() if name in options.names]
    for own_threads, group in itertools.groupby(chosen, key=lambda each: each.own_threads):
        given = dataclasses.replace(settings, threads=None if own_threads else settings.threads)
        scenarios = list(group)
        place = folder / f"sides-{scenarios[0].name}"
        await _together(scenarios, options, given, place, progress=progress, keep=keep)
    if options.same:
        return
    if "daemon" in options.names:
        for section in await daemon_cost.sections(settings, folder, options.pairs):
            keep(section)
    if "rest" in options.names:
        keep(await rest.section(settings, folder, options.pairs))
    if "greedy" in options.names:
        keep(await greedy.section(settings, folder, progress))


async def _together(
    scenarios: Sequence[Scenario],
    options: argparse.Namespace,
    settings: Settings,
    folder: Path,
    *,
    progress: Progress,
    keep: Keep,
) -> None:
    """Play scenarios whose sides have the same settings: each side is started once."""
    names = {each.name: (LLAMA_SERVER, SAME) if options.same else each.sides for each in scenarios}
    needed = dict.fromkeys(itertools.chain(*names.values()))
    async with standing(tuple(needed), settings, folder) as sides:
        for each in scenarios:
            chosen = [sides[name] for name in names[each.name]]
            keep(await play(each, chosen, options.pairs, progress))


def main() -> int:
    """Measure, print, keep; return the exit code."""
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    # asyncio.run turns SIGINT into a cancellation, which stops the servers.
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    folder = Path(tempfile.mkdtemp(prefix="edged-bench-"))
    try:
        settings = Settings(
            model=bench_model(),
            threads=options.threads,
            context=options.context,
            parallel=options.parallel,
            batch=options.batch,
            peer_args=tuple(shlex.split(options.peer_args)),
        )
        with watched() as before:
            time.sleep(LOOK_S)
        if before.too_much:
            console.print(
                f"[yellow]Others take {before.others + before.stolen:.0%} of this box: the figures "
                "will say little."
            )
        keep = _keeper(options, settings, f"{before.others + before.stolen:.0%}", console)
        with Progress(console=console, transient=True) as progress:
            asyncio.run(measure(options, settings, folder, progress, keep))
    except (BenchError, UnavailableError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        console.print(f"logs: {folder}")
        return 1
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _keeper(options: argparse.Namespace, settings: Settings, others: str, console: Console) -> Keep:
    """Return what shows, writes and documents a section: an hour may end before all are done."""
    about = report.machine() | {
        "others before": others,
        "settings": f"{settings.threads} threads, pool {settings.context}x{settings.parallel}, "
        f"batch {settings.batch}, KV {settings.kv_type}",
        "command": shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]]),
    }
    kept: list[report.Section] = []

    def keep(section: report.Section) -> None:
        kept.append(section)
        report.show(console, [section], LLAMA_SERVER if options.same else EDGED)
        if options.json:
            report.write_json(options.json, about, kept)
        if not (options.same or options.no_docs):
            report.write_document(about, [section])

    return keep


if __name__ == "__main__":
    sys.exit(main())
