"""`edged export` and `edged import`: models from box to box, or from other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edged import config
from edged.cli.client import ConfigFile, fail
from edged.config import Config, ConfigProblems, Model, Source
from edged.config.values import format_bytes
from edged.errors import StoreError
from edged.store import bundle, elsewhere, folders, lock
from edged.store.lock import Form
from edged.store.source import is_whole


def _loaded(config_file: str | None) -> tuple[Config, Path]:
    loaded = config.load(Path(config.find(config_file)))
    return loaded, folders.models(loaded.store.folder, loaded.path)


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A disk that is carried over.")],
    config_file: ConfigFile = None,
) -> None:
    """Write models.toml and the fetched files that it names, with digests and licences.

    After a break the same command goes on. `file:` sources stay behind, unless edged imported them.
    """
    try:
        loaded, store = _loaded(config_file)
        known = lock.read(store)
        for model in loaded.models.values():
            _look(model, known, store)
        folder.mkdir(parents=True, exist_ok=True)
        found = bundle.write(loaded, store, folder, _Said("copied"))
    except (ConfigProblems, StoreError) as error:
        fail(error.message)
    except OSError as error:
        fail(f"{folder} cannot be written: {error.strerror}")
    total = sum(entry.bytes for entry in found.sources)
    print(f"{len(found.sources)} sources, {format_bytes(total)}, are in {folder}.")
    print(f"On the other box: edged import {folder}")


def _look(model: Model, known: lock.Lock, store: Path) -> None:
    """Say what of a model stays behind; end the command where no engine could run the rest."""
    missing: dict[Form, Source] = {}
    for source, form in model.sources:
        entry = known.find(source, form)
        if source.scheme == "builtin" or (entry and is_whole(entry, store)):
            continue
        if source.scheme == "file" and entry is None:
            print(f"{model.name}: {source} is of this box and stays behind: copy it too")
        else:
            missing.setdefault(form, source)
    forms = {form for _, form in model.sources}
    for form, source in missing.items():
        if set(missing) == forms:
            fail(f"{model.name}: {source} is not here yet: run `edged pull {model.name}` first")
        print(
            f"{model.name}: {source} ({form}) is not here and stays behind; this box runs the "
            f"other form. `edged pull --all {model.name}` brings both"
        )


def import_(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="What `edged export` has written.")
    ] = None,
    config_file: ConfigFile = None,
    ollama: Annotated[
        bool, typer.Option("--from-ollama", help="The models of Ollama (DIR: its store).")
    ] = False,
    hf_cache: Annotated[
        bool,
        typer.Option(
            "--from-hf-cache", help="What models.toml names, from Hugging Face's cache (DIR)."
        ),
    ] = False,
) -> None:
    """Take model files that are on this box already. A running daemon follows by itself."""
    try:
        if ollama:
            _from_ollama(folder, config_file)
        elif hf_cache:
            _from_hf_cache(folder, config_file)
        elif folder is None:
            fail("say which DIR, --from-ollama or --from-hf-cache")
        else:
            _from_export(folder, config_file)
    except (ConfigProblems, StoreError) as error:
        fail(error.message)


def _from_export(folder: Path, config_file: str | None) -> None:
    path = Path(config.find(config_file))
    brought = folder / "models.toml"
    there = path.exists()
    loaded = config.load(path if there else brought)
    store = folders.models(loaded.store.folder, str(path.absolute()))
    found = bundle.take(folder, store, _Said("taken"))
    print(f"{len(found.sources)} sources are in {store}.")
    if not there:
        try:
            path.write_bytes(brought.read_bytes())
        except OSError as error:
            fail(f"{path} cannot be written: {error.strerror}")
        print(f"{path} was written as it was on the other box.")
    elif path.read_bytes() != brought.read_bytes():
        print(f"{path} stays as it is; that of the other box is {brought}.")


def _from_ollama(folder: Path | None, config_file: str | None) -> None:
    _, store = _loaded(config_file)
    there = folder or elsewhere.ollama_folder()
    with lock.bringing(store):
        found = list(elsewhere.from_ollama(there, store, lambda *_: None))
    if not found:
        fail("Ollama's store has no models")
    print("# Taken from Ollama; these lines make models of them:")
    for name, entry in found:
        print(f'\n[models."{name}"]\ngguf = "{entry.source}"')
        for file in entry.of_role("mmproj"):
            print(f'[models."{name}".llamacpp]\nmmproj = "file:{store / file.path}"')


def _from_hf_cache(folder: Path | None, config_file: str | None) -> None:
    loaded, store = _loaded(config_file)
    cache = folder or elsewhere.hf_cache()
    sources = {
        source
        for model in loaded.models.values()
        for source in model.ggufs
        if source.scheme == "hf"
    }
    if not sources:
        fail(f"{loaded.path} names no hf: source; name what the cache has, then try again")
    for source in sorted(sources, key=str):
        known = lock.read(store).find(source)
        if known is not None and is_whole(known, store):
            print(f"{source}: is here already")
            continue
        with lock.bringing(store):
            entry = elsewhere.from_hf_cache(cache, source, store, lambda *_: None)
        if entry is None:
            print(f"{source}: is not in {cache}")
        else:
            print(f"{source}: {entry.chosen}, {format_bytes(entry.bytes)}")


class _Said:
    """Prints a line for each file when it is done."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._done: set[str] = set()

    def __call__(self, file: lock.LockedFile, n_bytes: int) -> None:
        if n_bytes >= file.bytes and file.path not in self._done:
            self._done.add(file.path)
            print(f"{format_bytes(file.bytes):>10}  {file.path} {self._verb}")
