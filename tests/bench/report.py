"""What a run leaves: a table, raw figures as JSON, sections of docs/benchmarks.md."""

import dataclasses
import datetime as dt
import json
import os
import re
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.others import Taken, worst
from tests.bench.scenario import EDGED, Row
from tests.bench.servers import ROOT
from tests.models.source import llama_cpp_version

DOCUMENT = ROOT / "docs/benchmarks.md"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One row beside one peer, a pair of figures a round; or edged's figures alone."""

    row: Row
    edged: tuple[float, ...]
    peer: str = ""
    theirs: tuple[float, ...] = ()

    @property
    def ratio(self) -> float | None:
        """Return edged's median over the peer's."""
        below = statistics.median(self.theirs) if self.theirs else 0.0
        return statistics.median(self.edged) / below if below else None

    @property
    def paired(self) -> float | None:
        """Return the median of the ratios within the pairs: less moved by a machine's moods."""
        if not self.theirs or 0.0 in self.theirs:
            return None
        return statistics.median(a / b for a, b in zip(self.edged, self.theirs, strict=True))

    @property
    def target(self) -> float | None:
        """Return what the ratio, or edged's own figure, has to reach."""
        return self.row.targets.get(self.peer) if self.peer else self.row.limit

    @property
    def met(self) -> bool | None:
        """Say whether the target is reached; None where there is none."""
        value = self.ratio if self.peer else statistics.median(self.edged)
        if self.target is None or value is None:
            return None
        return value >= self.target if self.row.more_is_better else value <= self.target

    @property
    def wanted(self) -> str:
        """Say the target; nothing where there is none."""
        sign = "≥" if self.row.more_is_better else "≤"
        return "" if self.target is None else f"{sign} {self.target:g}"

    def cells(self, *, first: bool) -> tuple[str, ...]:
        """Return the cells of the table; edged's are said once, in the row's first line."""
        return (
            *((self.row.label, self.row.unit, _spread(self.edged)) if first else ("", "", "")),
            self.peer,
            _spread(self.theirs),
            "" if self.ratio is None else f"{self.ratio:.3f}",
            "" if self.paired is None else f"{self.paired:.3f}",
            self.wanted,
            {True: "met", False: "missed", None: ""}[self.met],
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """The figures of one row, a figure a round, by side: edged first, then its peers."""

    row: Row
    figures: Mapping[str, tuple[float, ...]]

    @property
    def comparisons(self) -> list[Comparison]:
        """Return edged beside each peer, and alone where there is none or its figure is limited."""
        (_, edged), *peers = self.figures.items()
        alone = [Comparison(self.row, edged)] if not peers or self.row.limit is not None else []
        return alone + [Comparison(self.row, edged, name, theirs) for name, theirs in peers]


@dataclasses.dataclass(frozen=True)
class Section:
    """One scenario's results. ``taken``: by side, what others took of the box in each act."""

    name: str
    about: str
    results: tuple[Result, ...]
    taken: Mapping[str, Sequence[Taken]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def lines(self) -> Iterator[tuple[Comparison, tuple[str, ...]]]:
        """Yield each line of the table."""
        for result in self.results:
            for i, comparison in enumerate(result.comparisons):
                yield comparison, comparison.cells(first=i == 0)

    @property
    def worthless(self) -> bool:
        """Tell whether others took so much of the box that the figures say little."""
        return any(_median(taken).too_much for taken in self.taken.values())

    @property
    def meanwhile(self) -> str:
        """Say what others took of the box's processors while the sides played."""
        if not self.taken:
            return ""
        said = "; ".join(
            f"{name} {_shares(_median(taken))} (worst act {_shares(worst(taken))})"
            for name, taken in self.taken.items()
        )
        warning = "The figures say little. " if self.worthless else ""
        return (
            f"{warning}Processor time that others on this machine took, and that other machines "
            f"stole, median of the acts of {said}."
        )


def _median(taken: Sequence[Taken]) -> Taken:
    return Taken(
        statistics.median(each.others for each in taken),
        statistics.median(each.stolen for each in taken),
    )


def _shares(taken: Taken) -> str:
    return f"{taken.others:.1%} + {taken.stolen:.1%}"


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


def _heads(first: str) -> tuple[str, ...]:
    spread = "median (min-max)"
    return ("", "unit", f"{first}: {spread}", "beside", spread, "ratio", "pairwise", "target", "")


def show(console: Console, sections: Sequence[Section], first: str) -> None:
    """Print a table for each scenario, and which targets ``first`` has met."""
    for section in sections:
        table = Table(title=f"{section.name}: {section.about}", title_justify="left")
        for head in _heads(first):
            table.add_column(head)
        for comparison, cells in section.lines():
            style = {True: "green", False: "red", None: None}[comparison.met]
            table.add_row(*cells, style=style)
        console.print(table)
        for note in section.notes:
            console.print(note, markup=False, highlight=False)
        if section.meanwhile:
            style = "yellow" if section.worthless else "dim"
            console.print(section.meanwhile, style=style, highlight=False)
    aimed = [(s, c) for s in sections for c, _ in s.lines() if c.met is not None]
    missed = [f"{s.name}: {_goal(c)}" for s, c in aimed if not c.met]
    if aimed:
        console.print(f"{len(aimed) - len(missed)} of {len(aimed)} targets met", highlight=False)
    for each in missed:
        console.print(f"  missed: {each}", style="red", markup=False, highlight=False)


def _goal(comparison: Comparison) -> str:
    value = comparison.ratio if comparison.peer else statistics.median(comparison.edged)
    beside = f" beside {comparison.peer}" if comparison.peer else f" {comparison.row.unit}"
    return f"{comparison.row.label}{beside} {value:.3g}, wanted {comparison.wanted}"


def write_json(path: Path, about: Mapping[str, Any], sections: Sequence[Section]) -> None:
    """Write every raw figure."""
    document = {
        "about": dict(about),
        "sections": [
            dataclasses.asdict(section)
            | {
                "results": [
                    dataclasses.asdict(result)
                    | {
                        "comparisons": [
                            {
                                "peer": each.peer,
                                "ratio": each.ratio,
                                "paired": each.paired,
                                "target": each.target,
                                "met": each.met,
                            }
                            for each in result.comparisons
                        ]
                    }
                    for result in section.results
                ]
            }
            for section in sections
        ],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def write_document(about: Mapping[str, Any], sections: Sequence[Section]) -> None:
    """Put each scenario's results between its marks in docs/benchmarks.md."""
    text = DOCUMENT.read_text()
    for section in sections:
        begin, end = f"<!-- bench:{section.name} -->", f"<!-- /bench:{section.name} -->"
        written = f"{begin}\n{_markdown(about, section)}{end}"
        if begin in text:
            head, tail = text.split(begin)[0], text.split(end)[1]
            text = head + written + tail
        else:
            text = f"{text.rstrip()}\n\n{written}\n"
    DOCUMENT.write_text(text)


def _markdown(about: Mapping[str, Any], section: Section) -> str:
    heads = _heads(EDGED)
    rows = [heads, ("---",) * len(heads), *(cells for _, cells in section.lines())]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    raw = "\n".join(
        f"{result.row.key}: {side} {' '.join(f'{value:.4g}' for value in values)}"
        for result in section.results
        for side, values in result.figures.items()
    )
    facts = "; ".join(f"{key} {value}" for key, value in about.items() if key != "command")
    said = "".join(f"{line}\n\n" for line in (*section.notes, section.meanwhile) if line)
    return (
        f"## {section.name}\n{section.about[0].upper()}{section.about[1:]}.\n\n{table}\n\n{said}"
        f"`{about['command']}`: {facts}.\n\nRaw figures in the order of the rounds:\n"
        f"```\n{raw}\n```\n"
    )


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.4g} ({min(values):.4g}-{max(values):.4g})"
