"""`edged check`: what is wrong with models.toml, or what it means and would change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import msgspec
import typer
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edged import auth, config, hardware, plan
from edged.api import in_force
from edged.api.in_force import InForce
from edged.cli.client import ConfigFile, Json, Url, reach
from edged.config import ConfigProblems, Problem
from edged.errors import ConfigError
from edged.plan import Diff, Plan
from edged.plan.places import MAIN, Sizes, lacking, less, total

_EXIT_CONFIG = 78  # EX_CONFIG
_GIB = 1 << 30


def check(config_file: ConfigFile = None, url: Url = None, json_: Json = False) -> None:
    """Check models.toml: its problems, or its plan and what it would change.

    Exits with 0 if the file can be used and with 78 if it cannot.
    """
    path = config.find(config_file)
    try:
        loaded = config.load(path)
        keys = auth.path_beside(path.absolute())
        auth.check_reach(loaded.server, auth.load(keys), keys)
    except ConfigError as error:
        _tell_problems(error, json_=json_)
        raise typer.Exit(_EXIT_CONFIG) from None
    made = plan.make(loaded, hardware.detect(loaded.hardware))
    against = _against(made, url)
    if json_:
        print(json.dumps(_as_json(made, against), indent=2))
    else:
        _tell(made, against)


def _tell_problems(error: ConfigError, *, json_: bool) -> None:
    problems = (
        error.problems
        if isinstance(error, ConfigProblems)
        else [Problem(error.message.partition(": ")[0], 0, error.message.partition(": ")[2])]
    )
    if json_:
        print(json.dumps({"ok": False, "problems": msgspec.to_builtins(problems)}, indent=2))
        return
    for problem in problems:
        typer.echo(str(problem), err=True)


class _Against(Struct, frozen=True):
    """The new plan against the running daemon; main memory in bytes.

    `beside`: replaced models whose new worker starts beside the old one, so that nobody waits;
    `after_stop`: those whose old worker has to leave first.
    """

    change: Diff
    held_bytes: int
    held_after_bytes: int
    beside: tuple[str, ...]
    after_stop: tuple[str, ...]


def _against(new: Plan, url: str | None) -> _Against | None:
    """Return what `new` would change in the running daemon; None if there is none to ask."""
    try:
        with reach(url, new.config.server.listen[0]) as client:
            found = client.get("/status").raise_for_status().json()
        change = in_force.diff(msgspec.convert(found["in_force"], InForce), in_force.of(new))
        held = {
            model["name"]: {MAIN: model["reserved_bytes"], **model["reserved_gpu_bytes"]}
            for model in found["models"]
            if model["reserved_bytes"]
        }
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
    return _compare(new, change, held)


def _compare(new: Plan, change: Diff, held: Mapping[str, Sizes]) -> _Against:
    """Return how the workers that hold memory now are replaced; one after the other, as reloads.

    `held`: by model and place.
    """
    now = total(*held.values())
    after = total(*(held[name] for name in held if name not in (*change.removed, *change.replaced)))
    beside: list[str] = []
    after_stop: list[str] = []
    for name in change.replaced:
        plan = new.models[name]
        if name not in held:
            continue
        if plan.refusal is not None or plan.memory is None:
            after = total(after, held[name])  # its earlier settings stay
            continue
        fits = not lacking(plan.sizes, less(new.budgets, now))
        (beside if fits else after_stop).append(name)
        after = total(after, plan.sizes)
    in_main = (now.get(MAIN, 0), after.get(MAIN, 0))
    return _Against(change, *in_main, tuple(beside), tuple(after_stop))


def _as_json(made: Plan, against: _Against | None) -> dict[str, Any]:
    models = [
        {
            "name": name,
            "engine": model.engine,
            "why": model.reasons,
            "refusal": model.refusal,
            "memory_bytes": model.memory.total_bytes if model.memory else None,
        }
        for name, model in made.models.items()
    ]
    return {
        "ok": True,
        "models": models,
        "budget_bytes": made.budget_bytes,
        "change": msgspec.to_builtins(against.change) if against else None,
        "against": msgspec.to_builtins(against),
    }


def _tell(made: Plan, against: _Against | None) -> None:
    console = Console()
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("MODEL", "ENGINE", "MEMORY", "WHY"):
        table.add_column(name, overflow="fold")
    for name, model in made.models.items():
        why = model.refusal or "; ".join(model.reasons)
        table.add_row(
            name,
            model.engine or Text("none", "bold red"),
            f"{model.memory.total_bytes / _GIB:.2f} GiB" if model.memory else "-",
            Text(why, "red" if model.refusal else ""),
        )
    refused = [name for name, model in made.models.items() if model.refusal]
    verdict = f"is valid, but cannot run {', '.join(refused)}" if refused else "is fine"
    console.print(f"{made.config.path} {verdict}.", highlight=False, markup=False)
    console.print(table)
    console.print(f"Models together may take {made.budget_bytes / _GIB:.1f} GiB.", highlight=False)
    if against is None:
        console.print("No daemon answers, so there is nothing to compare with.")
        return
    change = against.change
    refused_now = [name for name in change.replaced if made.models[name].refusal]
    other = set(change.replaced) - {*against.beside, *against.after_stop, *refused_now}
    lines = [
        ("would keep as they are ", change.unchanged),
        ("would add ", change.added),
        ("would drain and remove ", change.removed),
        ("would replace the worker of (beside the old one: no request waits) ", against.beside),
        ("would replace the worker of (after the old one: requests wait) ", against.after_stop),
        ("would replace the worker of (none runs now) ", tuple(sorted(other))),
        ("cannot be, earlier settings would stay as far as there are any: ", refused_now),
        ("would change in place ", change.updated),
    ]
    told = [f"  {verb}{', '.join(names)}" for verb, names in lines if names]
    if change.server:
        told.append("  would change [server]")
    if not (change.added or change.removed or change.replaced or change.updated or change.server):
        told = []
    if told:
        told.append(
            f"  workers hold {against.held_bytes / _GIB:.2f} GiB now, "
            f"{against.held_after_bytes / _GIB:.2f} GiB afterwards"
        )
    console.print("Against the running daemon this file:" if told else "Nothing would change.")
    for line in told:
        console.print(line, highlight=False)
