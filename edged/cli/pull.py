"""`edged pull`: bring the files of models here now, or see what an update would bring."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

from edged import config, hardware, plan
from edged.cli.client import ConfigFile, fail
from edged.config import Config, ConfigProblems, Source
from edged.config.values import format_bytes
from edged.errors import StoreError
from edged.plan import Plan
from edged.pull.auto import picker
from edged.pull.progress import Progress
from edged.pull.pulling import Pull, changes
from edged.store import lock
from edged.store.lock import Form, Locked
from edged.store.resolution import Resolution
from edged.store.source import is_whole

_PLAIN_S = 5.0  # a line this often where no terminal shows a bar
_DISTANT = ("hf", "ms", "https")


def pull(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]…", help="Without any: all.")
    ] = None,
    config_file: ConfigFile = None,
    update: Annotated[
        bool, typer.Option("--update", help="Look for newer files, and show what changes first.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Also what this box would not use: safetensors beside GGUF."),
    ] = False,
) -> None:
    """Fetch the files that models are missing. A running daemon takes them by itself."""
    made = loaded_plan(config_file)
    wanted = _wanted(made, models or [], everything=everything)
    console = Console(stderr=True)
    try:
        with _shown(console) as tell, _pull(made.config, tell) as pulling:
            if update:
                _update(pulling, wanted, console, yes=yes)
            else:
                _fetch_missing(pulling, wanted, console)
    except StoreError as error:
        fail(error.message)
    except KeyboardInterrupt:
        fail("broken off; the same command goes on from here")


def loaded_plan(config_file: str | None) -> Plan:
    """Return the plan of models.toml for this box; what is wrong with it ends the command."""
    try:
        loaded = config.load(Path(config.find(config_file)))
    except ConfigProblems as error:
        fail(error.message)
    return plan.make(loaded, hardware.detect(loaded.hardware))


class _Wanted(NamedTuple):
    """A distant source, in the form that the engine of its model reads."""

    model: str
    source: Source
    form: Form


def _wanted(made: Plan, names: list[str], *, everything: bool = False) -> list[_Wanted]:
    """Return the distant sources of these models, each once; all, or what this box would use."""
    for name in names:
        if name not in made.models:
            fail(f"models.toml has no [models.{name}]; it has {', '.join(made.models) or 'none'}")
    found: dict[tuple[Source, Form], str] = {}
    for name in names or made.models:
        each = made.models[name]
        folder = each.model.safetensors
        used = "safetensors" if each.engine == "lmdeploy" and folder else "gguf"
        for source, form in each.model.sources:
            if source.scheme in _DISTANT and (everything or form == used):
                found.setdefault((source, form), name)
    return [_Wanted(name, source, form) for (source, form), name in found.items()]


def _pull(loaded: Config, tell: _Tell) -> Pull:
    return Pull(loaded, picker(loaded, lambda: hardware.detect(loaded.hardware)), tell)


def _fetch_missing(pulling: Pull, wanted: list[_Wanted], console: Console) -> None:
    entries = lock.read(pulling.store)
    for name, source, form in wanted:
        entry = entries.find(source, form)
        if entry is None or not is_whole(entry, pulling.store):
            entry = pulling.fetch(pulling.resolve(source, name, form))
            console.print(f"{source}: {_said(entry)}", highlight=False)
        else:
            console.print(f"{source}: is here, {_said(entry)}", highlight=False)
    if not wanted:
        console.print("No model of models.toml is fetched from anywhere.")


def _said(entry: Locked) -> str:
    chosen = f"{entry.chosen}, " if entry.chosen else ""
    why = f"; {entry.why}" if entry.why else ""
    return f"{chosen}{format_bytes(entry.bytes)}, revision {entry.revision[:12] or 'unknown'}{why}"


def _update(pulling: Pull, wanted: list[_Wanted], console: Console, *, yes: bool) -> None:
    known = lock.read(pulling.store)
    new: list[Resolution] = []
    for name, source, form in wanted:
        found = pulling.resolve(source, name, form)
        change = changes(known.find(source, form), found)
        if change is None:
            console.print(f"{source}: nothing new", highlight=False)
        else:
            console.print(f"{source}: {change}", highlight=False)
            new.append(found)
    if not new:
        return
    if not yes:
        if not sys.stdin.isatty():
            fail("nothing was changed: say --yes to take what is shown above")
        typer.confirm("Take this?", abort=True)
    for found in new:
        console.print(f"{found.source}: {_said(pulling.fetch(found))}", highlight=False)
    console.print("Older files stay until `edged gc`.")


# ── progress ──


class _Tell:
    """Shows progress as a bar on a terminal, as lines elsewhere."""

    def __init__(self, console: Console, bars: Bars) -> None:
        self._console = console
        self._bars = bars
        self._task = bars.add_task("", total=None, visible=False)
        self._said_s = 0.0
        self._note = ""

    def __call__(self, progress: Progress) -> None:
        shown = f"{progress.source}  {progress.file or progress.note}"
        if self._console.is_terminal:
            self._bars.update(
                self._task,
                description=f"{shown} ({progress.note})" if progress.note else shown,
                completed=progress.done_bytes,
                total=progress.total_bytes or None,
                visible=True,
            )
            return
        now = time.monotonic()
        if now - self._said_s >= _PLAIN_S or progress.note != self._note:
            self._said_s, self._note = now, progress.note
            share = f" {progress.fraction:.0%} of {format_bytes(progress.total_bytes)}"
            note = f" {progress.note}" if progress.note and progress.file else ""
            self._console.print(f"{shown}{share if progress.total_bytes else ''}{note}")


@contextmanager
def _shown(console: Console) -> Iterator[_Tell]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield _Tell(console, bars)
