"""``python -m tests.bench``: measure edged beside llama-server and print, keep and document it."""

import argparse
import asyncio
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.bench import daemon_cost, report
from tests.bench.client import BenchError, chat
from tests.bench.prompts import Prompts, user
from tests.bench.rest import TARGET_MB, rest_mb
from tests.bench.scenarios import SCENARIOS, Figures, Row, Scenario
from tests.bench.servers import Server, Settings, edged, llama_server, running
from tests.models import UnavailableError, bench_model

NAMES = (*SCENARIOS, "rest", "daemon")
REST = Row("pss", "daemon, no model loaded: PSS", "MB", more_is_better=False, target=TARGET_MB)
BUSY_ABOVE = 0.1
PLAIN_WIDTH = 150
ACT_LIMIT_S = 600.0


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


async def measure(
    options: argparse.Namespace, settings: Settings, folder: Path, progress: Progress
) -> list[report.Section]:
    """Run the chosen scenarios."""
    sections = []
    if "rest" in options.names and not options.same:
        pss = await rest_mb(settings, folder / "rest")
        result = report.Result(REST, (pss,))
        sections.append(report.Section("rest", "edged alone, PSS of its processes", (result,)))
    if "daemon" in options.names and not options.same:
        sections += await daemon_cost.sections(settings, folder, options.pairs)
    chosen = [SCENARIOS[name] for name in options.names if name in SCENARIOS]
    if not chosen:
        return sections
    first = (
        llama_server(settings, folder / "same", "same")
        if options.same
        else edged(settings, folder / "edged")
    )
    second = llama_server(settings, folder / "llama-server")
    async with running(first) as one, running(second) as other:
        for server in (one, other):
            await chat(server.address, [user(f"Warm up {server.name}, please.")], 8)
        return sections + [
            await _compare(scenario, (one, other), options.pairs, progress) for scenario in chosen
        ]


async def _compare(
    scenario: Scenario, sides: tuple[Server, Server], n_pairs: int, progress: Progress
) -> report.Section:
    """Play ``n_pairs`` rounds; in each act the sides take turns in the order A B B A A B ..."""
    figures: dict[str, list[Figures]] = {side.name: [] for side in sides}
    task = progress.add_task(scenario.name, total=2 * n_pairs * len(scenario.acts))
    for pair in range(n_pairs):
        # Both sides of a pair get the same texts; the time makes them new to a used cache.
        prompts = Prompts(f"{time.time_ns()} {pair}")
        for side in sides:
            figures[side.name].append({})
        for act in scenario.acts:
            for side in sides if pair % 2 == 0 else sides[::-1]:
                try:
                    async with asyncio.timeout(ACT_LIMIT_S):
                        figures[side.name][-1] |= await act(side, prompts)
                except (BenchError, TimeoutError, OSError, EOFError) as error:
                    reason = f"{scenario.name} on {side.name}: {error or type(error).__name__}"
                    raise BenchError(reason) from error
                progress.advance(task)
    one, other = (figures[side.name] for side in sides)
    results = tuple(
        report.Result(
            row, tuple(round_[row.key] for round_ in one), tuple(r[row.key] for r in other)
        )
        for row in scenario.rows
    )
    return report.Section(scenario.name, scenario.about, results)


def busy(seconds: float = 2.0) -> float:
    """Return the part of the processors' time that others take now."""

    def times() -> list[int]:
        return [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]

    before = times()
    time.sleep(seconds)
    spent = [after - b for after, b in zip(times(), before, strict=True)]
    return 1 - (spent[3] + spent[4]) / max(1, sum(spent))


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
        load = busy()
        if load > BUSY_ABOVE:
            console.print(f"[yellow]Others take {load:.0%} of this box: the figures say little.")
        with Progress(console=console, transient=True) as progress:
            sections = asyncio.run(measure(options, settings, folder, progress))
    except (BenchError, UnavailableError) as error:
        console.print(f"[red]{error}", markup=True, highlight=False)
        console.print(f"logs: {folder}")
        return 1
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    shutil.rmtree(folder, ignore_errors=True)
    names = ("llama-server (1)", "llama-server (2)") if options.same else ("edged", "llama-server")
    about = report.machine() | {
        "busy before": f"{load:.0%}",
        "settings": f"{settings.threads} threads, pool {settings.context}x{settings.parallel}, "
        f"batch {settings.batch}, KV {settings.kv_type}",
        "command": shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]]),
    }
    report.show(console, sections, report.heads(names))
    if options.json:
        report.write_json(options.json, about, sections)
    if not (options.same or options.no_docs):
        report.write_document(about, sections, names)
    return 0


if __name__ == "__main__":
    sys.exit(main())
