"""Where `models.toml` is and how it is read: every problem is reported at once, with its line."""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from edged.config.keys import FIELDS, HARDWARE, MODEL, SERVER, STORE, TOP, Entries, Keys, home
from edged.config.lines import key_lines
from edged.config.structs import (
    Adapter,
    Config,
    ConfigProblems,
    HardwareOverrides,
    LlamaCppOptions,
    LmdeployOptions,
    Model,
    Problem,
    Server,
    Store,
    Tls,
)
from edged.config.values import BadValueError, suggestion, text
from edged.protocol import Sampling

# ── where the file is ──

SYSTEM_PATH = Path("/etc/edged/models.toml")


def find(explicit: str | None) -> Path:
    """Return the file to read: the given one, else ./models.toml if it is there, else /etc's."""
    if explicit is not None:
        return Path(explicit)
    here = Path("models.toml")
    return here if here.exists() else SYSTEM_PATH


# ── reading it ──

_MAX_FILE_BYTES = 1 << 20
_MAX_PROBLEMS = 100
_Table = dict[str, Any]


def load(path: Path | str) -> Config:
    """Read the file; raises ConfigProblems with everything that is wrong in it."""
    path = Path(path)
    return parse(_content(path), path)


def parse(content: bytes, path: Path) -> Config:
    """Read the content of the file at `path`; raises ConfigProblems like `load`."""
    try:
        document = content.decode("utf-8-sig")  # some editors begin a file with a BOM
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        _refuse(
            path, line, f"is not UTF-8: byte 0x{content[error.start]:02x}; save the file as UTF-8"
        )
    try:
        top = tomllib.loads(document)
    except RecursionError:
        _refuse(path, 0, "is nested too deeply")
    except ValueError as error:  # TOMLDecodeError, and a number of too many digits
        where = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", str(error))
        line = int(where[1]) if where and where[1] else document.count("\n") + 1 if where else 0
        reason = str(error)[: where.start()] if where else str(error)
        _refuse(path, line, f"is not TOML: {_readable(reason)}")
    return _Reading(path, top, key_lines(document)).config()


def _readable(reason: str) -> str:
    """Write the tables in tomllib's messages, `('models', 'a')`, as they stand in the file."""

    def header(found: re.Match[str]) -> str:
        return f"[{'.'.join(re.findall(_QUOTED, found[0]))}]"

    return re.sub(rf"\({_QUOTED}(?:, {_QUOTED})*,?\)", header, reason)


_QUOTED = r"'([^']*)'"


def _content(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            _refuse(path, 0, "is a directory; give the path of the file in it")
        if not stat.S_ISREG(status.st_mode):
            _refuse(path, 0, "is not a regular file")
        if status.st_size > _MAX_FILE_BYTES:
            _refuse(path, 0, f"has {status.st_size} bytes, at most {_MAX_FILE_BYTES} are read")
        return path.read_bytes()
    except FileNotFoundError:
        _refuse(path, 0, "does not exist; give another with --config FILE")
    except OSError as error:
        _refuse(path, 0, f"cannot be read: {error.strerror}")


def _refuse(path: Path, line: int, message: str) -> NoReturn:
    raise ConfigProblems([Problem(str(path), line, message)]) from None


class _Reading:
    """One pass over the tables of one file, collecting problems on the way."""

    def __init__(self, path: Path, top: _Table, lines: dict[tuple[str, ...], int]) -> None:
        self._path = path
        self._top = top
        self._lines = lines
        self._problems: list[Problem] = []

    def config(self) -> Config:
        """Return what the file says, or raise ConfigProblems."""
        self._unknown_keys((), self._top, TOP)
        server = self._table((), "server", self._top, SERVER)
        hardware = self._table((), "hardware", self._top, HARDWARE)
        store = self._table((), "store", self._top, STORE)
        defaults = self._table((), "defaults", self._top, MODEL)
        if defaults.get("llamacpp", {}).pop("lora", None):
            message = "belongs to one model, since an adapter fits no other"
            self._problem(("defaults", "llamacpp", "lora"), message)
        models = self._models(defaults)
        tls = Tls(**server.pop("tls", {}))
        config = Config(
            path=str(self._path.absolute()),
            server=Server(**server, tls=tls),
            hardware=HardwareOverrides(**hardware),
            store=Store(**store),
            models=models,
        )
        self._check_tls(config.server.tls)
        self._check_names(config.models)
        if self._problems:
            raise ConfigProblems(sorted(self._problems, key=lambda problem: problem.line))
        return config

    # tables

    def _table(self, at: tuple[str, ...], key: str, parent: _Table, keys: Keys) -> _Table:
        """Return the fields that `parent[key]` sets; problems are noted, their keys left out."""
        path = (*at, key)
        table = parent.get(key, {})
        if not isinstance(table, dict):
            self._problem(path, f"must be a table: write [{_dotted(path)}]")
            return {}
        self._unknown_keys(path, table, keys)
        fields: _Table = {}
        for name, reader in keys.items():
            if name not in table:
                continue
            if isinstance(reader, Mapping):
                fields[name] = self._table(path, name, table, reader)
                continue
            if isinstance(reader, Entries):
                fields[name] = self._entries(path, name, table, reader)
                continue
            try:
                fields[FIELDS.get(name, name)] = reader(table[name])
            except BadValueError as error:
                self._problem((*path, name), str(error))
        return fields

    def _entries(
        self, at: tuple[str, ...], key: str, parent: _Table, entries: Entries
    ) -> dict[str, _Table]:
        """Return the fields of each entry of `parent[key]` by its name."""
        path = (*at, key)
        table = parent[key]
        if not isinstance(table, dict):
            self._problem(path, f"must be a table of names: write [{_dotted(path)}]")
            return {}
        whole = {
            name: value if isinstance(value, dict) else {entries.sole: value}
            for name, value in table.items()
        }
        for name, value in whole.items():
            self._name((*path, name), name)
            if entries.sole not in value:
                self._problem((*path, name), f"needs {entries.sole} = …")
        return {name: self._table(path, name, whole, entries.keys) for name in whole}

    def _name(self, path: tuple[str, ...], name: str) -> None:
        try:
            text(name)
        except BadValueError as error:
            self._problem(path, f"as a name {error}")

    def _models(self, defaults: _Table) -> dict[str, Model]:
        models = self._top.get("models", {})
        if not isinstance(models, dict):
            self._problem(("models",), "must be tables: write [models.NAME] for each model")
            return {}
        said = {name: self._table(("models",), name, models, MODEL) for name in models}
        return {
            name: self._model(name, said[name], defaults)
            for name, table in models.items()
            if isinstance(table, dict)
        }

    def _model(self, name: str, said: _Table, defaults: _Table) -> Model:
        self._name(("models", name), name)
        merged = defaults | said
        merged["context_is_default"] = "context" not in said
        merged["parallel_is_default"] = "parallel" not in merged
        for part, struct in _PARTS.items():
            fields = defaults.get(part, {}) | said.get(part, {})
            if "lora" in fields:
                fields["lora"] = tuple(Adapter(n, **each) for n, each in fields["lora"].items())
            merged[part] = struct(**fields)
        model = Model(name=name, **merged)
        self._check_source(model)
        self._check_llamacpp(model)
        return model

    # checks across keys

    def _check_source(self, model: Model) -> None:
        path = ("models", model.name)
        if not any(self._said(model.name, key) for key in ("gguf", "safetensors", "upstream")):
            self._problem(
                path, 'has no source: give it gguf = "…", safetensors = "…" or upstream = "…"'
            )
            return
        files = [key for key in ("gguf", "safetensors") if self._said(model.name, key)]
        if model.upstream and files:
            message = (
                f"cannot be combined with {' and '.join(files)}: an upstream has its own files"
            )
            self._problem((*path, "upstream"), message)
        needed = {"llamacpp": "gguf", "lmdeploy": "safetensors", "upstream": "upstream"}
        source_key = needed.get(model.backend)
        if source_key and not self._said(model.name, source_key):
            self._problem((*path, "backend"), f'= "{model.backend}" needs {source_key} = "…"')
        elif model.upstream and model.backend not in ("auto", "upstream"):
            self._problem(
                (*path, "backend"), f'= "{model.backend}" cannot be combined with upstream'
            )

    def _check_llamacpp(self, model: Model) -> None:
        options = model.llamacpp
        if options.flash_attention == "off" and options.kv_type[0] == "q":
            message = f'= "{options.kv_type}" needs flash attention, and flash_attention is "off"'
            self._problem(("models", model.name, "llamacpp", "kv_type"), message)
        if options.lora and model.upstream:
            message = "cannot be combined with upstream: an upstream has its own adapters"
            self._problem(("models", model.name, "llamacpp", "lora"), message)

        if options.draft is not None and options.speculation == "off":
            message = '= "…" is of no use while speculation is "off"'
            self._problem(("models", model.name, "llamacpp", "draft"), message)

    def _said(self, name: str, key: str) -> bool:
        """Tell whether a model or the defaults set a key, well or badly."""
        defaults = self._top.get("defaults", {})
        return key in self._top["models"][name] or (isinstance(defaults, dict) and key in defaults)

    def _check_tls(self, tls: Tls) -> None:
        at = ("server", "tls")
        files = {"cert": tls.cert, "key": tls.key}
        if tls.mode == "files" and None in files.values():
            missing = " and ".join(name for name, value in files.items() if value is None)
            self._problem((*at, "mode"), f'= "files" needs {missing} = "/path/of/the.pem"')
        for name, value in files.items():
            if tls.mode != "files" and value is not None:
                self._problem((*at, name), f'is of use with mode = "files", not "{tls.mode}"')

    def _check_names(self, models: dict[str, Model]) -> None:
        owners = dict.fromkeys(models, "a model")

        def claim(name: str, owner: str, *path: str) -> None:
            if name in owners:
                whose = owners[name]
                message = f'"{name}" is already the name of {whose}; names and aliases are unique'
                self._problem(("models", *path), message)
            owners.setdefault(name, owner)

        for name, model in models.items():
            for alias in model.aliases:
                claim(alias, f'the model "{name}" (alias)', name, "aliases")
        for name, model in models.items():
            for adapter in model.llamacpp.lora:
                at = (name, "llamacpp", "lora", adapter.name)
                owner = f'the adapter "{adapter.name}" of "{name}"'
                claim(f"{name}:{adapter.name}", owner, *at)
                for alias in adapter.aliases:
                    claim(alias, f"{owner} (alias)", *at, "aliases")

    # problems

    def _unknown_keys(self, path: tuple[str, ...], table: _Table, keys: Keys) -> None:
        for key in table:
            if key not in keys:
                hint = home(key) or suggestion(key, keys) or f"; known are {', '.join(keys)}"
                self._problem((*path, key), f"is not a known key{hint}")

    def _problem(self, path: tuple[str, ...], message: str) -> None:
        line = next(
            (self._lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self._lines), 0
        )
        self._problems.append(Problem(str(self._path), line, f"{_dotted(path)} {message}"))
        if len(self._problems) == _MAX_PROBLEMS:
            more = Problem(
                str(self._path), 0, f"only the first {_MAX_PROBLEMS} problems are listed"
            )
            raise ConfigProblems([*self._problems, more])


_PARTS: dict[str, Any] = {
    "sampling": Sampling,
    "llamacpp": LlamaCppOptions,
    "lmdeploy": LmdeployOptions,
}


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(
        part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part[:60]}"' for part in path
    )
