"""`edged gc`: remove model files that models.toml does not name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edged import config
from edged.cli.client import ConfigFile, fail
from edged.config import ConfigProblems
from edged.config.values import format_bytes
from edged.errors import StoreError
from edged.store import folders, gc


def collect(
    config_file: ConfigFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be removed.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    also: Annotated[
        list[Path] | None,
        typer.Option("--keep-for", metavar="FILE", help="Another models.toml on the same store."),
    ] = None,
) -> None:
    """Remove fetched files that no configuration names: old revisions, models taken out."""
    try:
        loaded = config.load(Path(config.find(config_file)))
        others = [config.load(path) for path in also or []]
        store = folders.models(loaded.store.folder, loaded.path)
        if not store.is_dir():
            print(f"There is nothing to remove: {store} does not exist.")
            return
        kept = gc.named([loaded, *others])
        found = gc.garbage(store, kept)
        if not found.files and not found.entries:
            print(f"There is nothing to remove in {store}.")
            return
        for path, n_bytes in found.files:
            print(f"{format_bytes(n_bytes):>10}  {path}")
        print(f"{format_bytes(found.bytes):>10}  in all, which {loaded.path} does not name")
        if dry_run:
            return
        if not yes:
            if not sys.stdin.isatty():
                fail("nothing was removed: say --yes to remove what is shown above")
            typer.confirm("Remove it?", abort=True)
        found = gc.remove(store, found, kept, _wait)
    except (ConfigProblems, StoreError) as error:
        fail(error.message)
    print(f"{format_bytes(found.bytes)} are free again.")


def _wait() -> None:
    print("A pull or an import is under way; waiting for its end.", file=sys.stderr)
