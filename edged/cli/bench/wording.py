"""A report in words: what the terminal's page and the chart say alike. Pure."""

from __future__ import annotations

from edged.cli.bench.figures import Figure, Report


def number(value: float) -> str:
    """Return three significant digits: 0.0512, 4.3, 56.7, 1,230."""
    if value >= 100:  # noqa: PLR2004
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return "0.8 ms", "51 ms", "1.21 s"."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{number(seconds * 1000)} ms"


def size(n_bytes: int | None) -> str:
    """Return "99 MiB", "1.2 GiB"."""
    if n_bytes is None:
        return "-"
    mib = n_bytes / (1 << 20)
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"  # noqa: PLR2004


def plural(n: int, noun: str) -> str:
    """Return "1 client", "2 clients"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def spread(figure: Figure) -> str:
    """Return the lowest and highest run, if there were several."""
    if len(figure.runs) == 1:
        return ""
    return f"{number(figure.lowest)} - {number(figure.highest)}"


def box(report: Report) -> str:
    """Return what it was measured on."""
    hardware = report.hardware
    parts = [
        hardware.cpu.model,
        plural(hardware.cpu.usable_cores, "core"),
        f"{size(hardware.memory.limit_bytes)} memory",
        *(f"{gpu.name} {size(gpu.memory_bytes)}" for gpu in hardware.gpus),
    ]
    return ", ".join(parts)


def chosen(report: Report) -> str:
    """Return engine and settings."""
    parts = [report.build or report.engine]
    if (settings := report.settings) is not None:
        threads = plural(settings.threads, "thread")
        if settings.threads_batch != settings.threads:
            threads += f" ({settings.threads_batch} for prompts)"
        parts += [
            threads,
            f"batch {settings.batch}",
            f"KV {settings.kv_type}",
            f"flash attention {settings.flash_attention}",
            f"speculation {settings.speculation}",
        ]
        if settings.gpu_layers:
            parts.append(plural(settings.gpu_layers, "GPU layer"))
    parts += [f"context {report.context:,}", f"parallel {report.parallel}"]
    if report.settings is not None:
        parts.append(plural(report.settings.pool, "cell"))
    return ", ".join(parts)


def memory(report: Report) -> str:
    """Return who takes how much."""
    loaded = "" if report.load_s is None else f"; loaded in {duration(report.load_s)}"
    return (
        f"worker {size(report.memory_bytes)}, daemon {size(report.daemon_memory_bytes)} "
        f"resident{loaded}"
    )


def cautions(report: Report) -> list[str]:
    """Return what a reader of the figures must know, a line each."""
    found = []
    others = report.others
    if others.open or others.answered:
        found.append(
            "others used the daemon meanwhile, so that these figures are too low: "
            f"{plural(others.answered, 'request')} of theirs ended, "
            f"{others.open} at most were under way between two measurements"
        )
    if report.threads_reason:
        found.append(f"fewer threads ran at the end: {report.threads_reason}")
    if report.missing:
        found.append(f"time was up before: {', '.join(report.missing)}; --seconds gives it more")
    prompt = report.prompt
    if prompt is not None and not prompt.shared_tokens:
        found.append(
            "nothing of the same beginning was found in memory: models with a recurrent state or "
            "a sliding window can only go on where an earlier text ended"
        )
    return found
