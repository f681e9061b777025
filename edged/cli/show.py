"""`edged status`, `edged models`, `edged version`: what runs, as tables or JSON."""

from __future__ import annotations

import json
import platform
import time
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edged import __version__
from edged.cli.client import Json, Url, connected, fetch

COLOURS = {
    "ready": "green",
    "fetching": "cyan",
    "starting": "yellow",
    "draining": "yellow",
    "stopped": "dim",
    "backoff": "red",
    "failed": "bold red",
}
_REFRESH_S = 1.0


def status(
    url: Url = None,
    json_: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
) -> None:
    """Show models, states, engines and why, memory, tokens per second."""
    console = Console()
    with connected(url) as client:
        if json_:
            print(json.dumps(fetch(client, "/status"), indent=2))
            return
        if not watch:
            console.print(_page(fetch(client, "/status")))
            return
        try:
            with Live(_page(fetch(client, "/status")), console=console, screen=True) as live:
                while True:
                    time.sleep(_REFRESH_S)
                    live.update(_page(fetch(client, "/status")))
        except KeyboardInterrupt:
            return


def _page(found: dict[str, Any]) -> RenderableType:
    config, hardware = found["config"], found["hardware"]
    memory = hardware["memory"]
    head = Text.assemble(
        ("edged ", "bold"),
        f"{found['version']}, up {_duration(found['uptime_s'])}, "
        f"daemon {_bytes(found['memory_bytes'])}, on {', '.join(found['listen'])}\n",
        f"{hardware['cpu']['model']}, {hardware['cpu']['usable_cores']} cores, "
        f"{_bytes(memory['limit_bytes'])} memory",
        *(f", {gpu['name']} {_bytes(gpu['memory_bytes'])}" for gpu in hardware["gpus"]),
        f"\n{config['path']}, generation {config['generation']}",
    )
    parts: list[RenderableType] = [head]
    if config["problem"]:
        parts.append(
            Text(f"THE NEWEST models.toml IS NOT IN FORCE:\n{config['problem']}", "bold red")
        )
    parts += [Text(f"DEGRADED: {line}", "bold red") for line in found["degraded"]]
    parts.append(_models(found["models"]))
    if found["ledger_problem"]:
        parts.append(Text(f"note: {found['ledger_problem']}", "yellow"))
    parts += [Text(f"note: {note}", "yellow") for note in hardware["notes"]]
    return Group(*parts)


def _models(models: list[dict[str, Any]]) -> RenderableType:
    if not models:
        return Text("no models; add a [models.NAME] table to models.toml")
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("MODEL", "STATE", "ENGINE"):
        table.add_column(name, overflow="fold")
    for name in ("MEMORY", "OPEN", "WAIT", "TOKENS/S"):
        table.add_column(name, justify="right")
    table.add_column("WHY", overflow="fold")
    for model in models:
        trouble = _trouble(model)
        why = trouble or "; ".join([*model["reasons"], *_fewer_threads(model["stats"])])
        table.add_row(
            model["name"],
            Text(_state(model), COLOURS.get(model["state"], "")),
            model["engine"] or "none",
            _bytes(model["memory_bytes"]),
            str(model["open"]),
            str(model["queued"]),
            _speed(model["stats"]) if model["kind"] == "chat" else "-",
            Text(why, "bold red" if model["rolled_back"] else "red" if trouble else ""),
        )
    return table


def _trouble(model: dict[str, Any]) -> str:
    if model["rolled_back"]:
        return f"ITS NEWEST SETTINGS ARE NOT IN FORCE, the earlier ones run: {model['rolled_back']}"
    return model["error"] or ""


def _state(model: dict[str, Any]) -> str:
    if model["state"] in ("starting", "fetching") and model["progress"] is not None:
        return f"{model['state']} {model['progress']:.0%}"
    return f"{model['state']} {_duration(model['since_s'])}"


def _fewer_threads(stats: dict[str, Any] | None) -> list[str]:
    return [stats["threads_reason"]] if stats and stats["threads_reason"] else []


def _speed(stats: dict[str, Any] | None) -> str:
    """Return the tokens per second of this moment: each running sequence gets one a step."""
    if not stats or not stats["running"] or not stats["step_ms"]:
        return "-"
    return f"{stats['running'] * 1000 / stats['step_ms']:.0f}"


def version(json_: Json = False) -> None:
    """Show the version."""
    found = {"edged": __version__, "python": platform.python_version()}
    print(json.dumps(found) if json_ else f"edged {__version__}, Python {found['python']}")


def _bytes(n_bytes: int | None) -> str:
    if n_bytes is None:
        return "-"
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:  # noqa: PLR2004
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if whole >= 2 * length:
            return f"{whole // length}{unit}"
    return f"{whole}s"
