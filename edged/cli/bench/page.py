"""A report as tables for the terminal, and as a chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edged.cli.bench import chart
from edged.cli.bench.chart import Column, Panel
from edged.cli.bench.figures import Figure, Prompt, Report
from edged.cli.bench.wording import (
    box,
    cautions,
    chosen,
    duration,
    memory,
    number,
    plural,
    spread,
)

_CAPTION = "Columns: medians of the rounds; lines: the lowest and the highest."


def page(report: Report) -> RenderableType:
    """Return what the terminal shows."""
    head = Text.assemble(
        (report.model, "bold"),
        f" on edged {report.edged}, {report.date}, {report.seconds:.0f} s\n",
        f"{box(report)}\n{chosen(report)}\n{'; '.join(report.why)}",
    )
    parts: list[RenderableType] = [head, Text()]
    if report.decode:
        parts += [_decode(report), Text()]
    if report.prompt is not None:
        parts += [_prompt(report.prompt), Text()]
    if report.inputs or report.alone_s:
        parts += [_inputs(report), Text()]
    parts.append(Text.assemble(("MEMORY  ", "bold"), memory(report)))
    parts += [Text(f"note: {line}", "yellow") for line in cautions(report)]
    return Group(*parts)


def svg(report: Report) -> str:
    """Return the chart as an SVG document."""
    about = [
        f"edged {report.edged}, {report.date}, {box(report)}",
        chosen(report),
        f"memory: {memory(report)}",
    ]
    panels = list(_chat_panels(report) if report.kind == "chat" else _input_panels(report))
    return chart.draw(report.model, about, panels, [_CAPTION], cautions(report))


# ── tables ──


def _table(*names: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(names[0])
    for name in names[1:]:
        table.add_column(name, justify="right")
    return table


def _decode(report: Report) -> Table:
    table = _table("DECODE", "TOKENS/S", "LOWEST - HIGHEST", "EACH CLIENT", "FIRST TOKEN")
    for row in report.decode:
        rate = row.tokens_per_s
        table.add_row(
            plural(row.clients, "client"),
            number(rate.median),
            spread(rate),
            number(rate.median / row.clients),
            duration(row.ttft_s.median),
        )
    return table


def _prompt(prompt: Prompt) -> Table:
    table = _table("PROMPT", "FIRST TOKEN", "LOWEST - HIGHEST", "IN MEMORY", "PREFILL")
    table.add_row(
        f"{plural(prompt.prompt_tokens, 'token')}, new",
        duration(prompt.ttft_s.median),
        _times(prompt.ttft_s),
        "",
        f"{number(prompt.tokens_per_s.median)} tokens/s",
    )
    table.add_row(
        "same beginning",
        duration(prompt.shared_ttft_s.median),
        _times(prompt.shared_ttft_s),
        f"{prompt.shared_tokens:,}",
        "",
    )
    return table


def _inputs(report: Report) -> Table:
    table = _table("INPUTS", "INPUTS/S", "LOWEST - HIGHEST", "TOKENS/S", "A REQUEST")
    if report.alone_s is not None:
        table.add_row("1 client, 1 input a request", "", "", "", duration(report.alone_s.median))
    for row in report.inputs:
        table.add_row(
            f"{plural(row.clients, 'client')}, {plural(row.inputs_each, 'input')} a request",
            number(row.inputs_per_s.median),
            spread(row.inputs_per_s),
            number(row.tokens_per_s.median),
            duration(row.request_s.median),
        )
    return table


def _times(figure: Figure) -> str:
    if len(figure.runs) == 1:
        return ""
    return f"{duration(figure.lowest)} - {duration(figure.highest)}"


# ── the chart ──


def _chat_panels(report: Report) -> list[Panel]:
    panels = []
    if report.decode:
        columns = tuple(
            _column(
                plural(row.clients, "client"),
                row.tokens_per_s,
                below=f"{number(row.tokens_per_s.median / row.clients)} each",
            )
            for row in report.decode
        )
        panels.append(Panel("Decode", "tokens per second, all clients together", columns))
    if (prompt := report.prompt) is not None:
        pair = (
            ("new prompt", prompt.ttft_s, f"{number(prompt.tokens_per_s.median)} tokens/s"),
            (
                "same beginning",
                prompt.shared_ttft_s,
                f"{prompt.shared_tokens:,} tokens in memory",
            ),
        )
        title = f"First token after a prompt of {plural(prompt.prompt_tokens, 'token')}"
        panels.append(_timed(title, pair))
    return panels


def _input_panels(report: Report) -> list[Panel]:
    panels = []
    if report.inputs:
        columns = tuple(
            _column(
                plural(row.clients, "client"),
                row.inputs_per_s,
                below=f"{number(row.tokens_per_s.median)} tokens/s",
            )
            for row in report.inputs
        )
        panels.append(Panel("Inputs", "inputs per second, all clients together", columns))
    times = [] if report.alone_s is None else [("1 input alone", report.alone_s, "")]
    times += [
        (plural(row.clients, "client"), row.request_s, plural(row.inputs_each, "input"))
        for row in report.inputs
    ]
    if times:
        panels.append(_timed("A request, from its sending to its end", times))
    return panels


def _timed(title: str, rows: Sequence[tuple[str, Figure, str]]) -> Panel:
    """Return a panel of times, in s or ms, whichever reads better."""
    in_s = max(figure.highest for _, figure, _ in rows) >= 1
    columns = tuple(
        _column(label, figure, below=below, scale=1 if in_s else 1000, text=duration)
        for label, figure, below in rows
    )
    return Panel(title, "seconds" if in_s else "milliseconds", columns)


def _column(
    label: str,
    figure: Figure,
    *,
    below: str,
    scale: float = 1,
    text: Callable[[float], str] = number,
) -> Column:
    return Column(
        label,
        figure.median * scale,
        figure.lowest * scale,
        figure.highest * scale,
        text(figure.median),
        below,
    )
