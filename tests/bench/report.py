"""What a run leaves: a table, raw figures as JSON, sections of docs/benchmarks.md."""

import dataclasses
import datetime as dt
import json
import os
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.scenarios import Row
from tests.bench.servers import ROOT
from tests.models.source import llama_cpp_version

DOCUMENT = ROOT / "docs/benchmarks.md"


@dataclasses.dataclass(frozen=True)
class Result:
    """The figures of one row, a pair a round; without a peer the target is edged's own limit."""

    row: Row
    edged: tuple[float, ...]
    peer: tuple[float, ...] = ()

    @property
    def ratio(self) -> float | None:
        """Return edged's median over the peer's."""
        below = statistics.median(self.peer) if self.peer else 0.0
        return statistics.median(self.edged) / below if below else None

    @property
    def paired(self) -> float | None:
        """Return the median of the ratios within the pairs: less moved by a machine's moods."""
        if not self.peer or 0.0 in self.peer:
            return None
        return statistics.median(a / b for a, b in zip(self.edged, self.peer, strict=True))

    @property
    def met(self) -> bool | None:
        """Say whether the target is reached; None where there is none."""
        value = self.ratio if self.peer else statistics.median(self.edged)
        if self.row.target is None or value is None:
            return None
        if self.row.more_is_better:
            return value >= self.row.target
        return value <= self.row.target

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        sign = "≥" if self.row.more_is_better else "≤"
        return (
            self.row.label,
            self.row.unit,
            _spread(self.edged),
            _spread(self.peer),
            "" if self.ratio is None else f"{self.ratio:.3f}",
            "" if self.paired is None else f"{self.paired:.3f}",
            "" if self.row.target is None else f"{sign} {self.row.target:g}",
            {True: "met", False: "missed", None: ""}[self.met],
        )


@dataclasses.dataclass(frozen=True)
class Section:
    """One scenario's results."""

    name: str
    about: str
    results: tuple[Result, ...]


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run(
        [*git, "describe", "--always", "--dirty", "--abbrev=10"],
        check=False,
        capture_output=True,
        text=True,
    )
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{model[1] if model else 'unknown'}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GiB",
        "kernel": os.uname().release,
        "commit": commit.stdout.strip() or "unknown",
        "llama-cpp-python": llama_cpp_version(),
    }


def show(console: Console, sections: Sequence[Section], heads: Sequence[str]) -> None:
    """Print a table for each scenario."""
    for section in sections:
        table = Table(title=f"{section.name}: {section.about}", title_justify="left")
        for head in heads:
            table.add_column(head)
        for result in section.results:
            style = {True: "green", False: "red", None: None}[result.met]
            table.add_row(*result.cells(), style=style)
        console.print(table)


def heads(names: tuple[str, str]) -> tuple[str, ...]:
    """Return the heads of the columns for the two sides' names."""
    return (
        "",
        "unit",
        *(f"{name}: median (min-max)" for name in names),
        "ratio",
        "pairwise",
        "target",
        "",
    )


def write_json(path: Path, about: Mapping[str, Any], sections: Sequence[Section]) -> None:
    """Write every raw figure."""
    document = {
        "about": dict(about),
        "sections": [
            dataclasses.asdict(section)
            | {
                "results": [
                    dataclasses.asdict(result)
                    | {"ratio": result.ratio, "paired": result.paired, "met": result.met}
                    for result in section.results
                ]
            }
            for section in sections
        ],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def write_document(
    about: Mapping[str, Any], sections: Sequence[Section], names: tuple[str, str]
) -> None:
    """Put each scenario's results between its marks in docs/benchmarks.md."""
    text = DOCUMENT.read_text()
    for section in sections:
        begin, end = f"<!-- bench:{section.name} -->", f"<!-- /bench:{section.name} -->"
        written = f"{begin}\n{_markdown(about, section, names)}{end}"
        if begin in text:
            head, tail = text.split(begin)[0], text.split(end)[1]
            text = head + written + tail
        else:
            text = f"{text.rstrip()}\n\n{written}\n"
    DOCUMENT.write_text(text)


def _markdown(about: Mapping[str, Any], section: Section, names: tuple[str, str]) -> str:
    columns = heads(names)
    rows = [columns, ("---",) * len(columns), *(result.cells() for result in section.results)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    raw = "\n".join(
        f"{result.row.key}: {side} {' '.join(f'{value:.4g}' for value in values)}"
        for result in section.results
        for side, values in zip(names, (result.edged, result.peer), strict=True)
        if values
    )
    facts = "; ".join(f"{key} {value}" for key, value in about.items() if key != "command")
    return (
        f"## {section.name}\n{section.about[0].upper()}{section.about[1:]}.\n\n{table}\n\n"
        f"`{about['command']}`: {facts}.\n\nRaw figures in the order of the rounds:\n"
        f"```\n{raw}\n```\n"
    )


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.4g} ({min(values):.4g}-{max(values):.4g})"
