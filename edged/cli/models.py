"""`edged models`: what can be asked for, and what its files are; `inspect` looks into one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edged import config, hardware, plan
from edged.cli.client import ConfigFile, Json, Url, connected, fail, fetch, reach
from edged.cli.show import COLOURS
from edged.config import Config, ConfigProblems, Model, Source
from edged.config.values import format_bytes
from edged.errors import StoreError
from edged.hardware import Hardware
from edged.plan import ModelPlan, Plan
from edged.store.gguf import GgufHeader, read_any, read_header, read_text
from edged.worker.output import formats

app = typer.Typer(help="List models and what their files are.", invoke_without_command=True)


@app.callback()
def models(
    context: typer.Context, url: Url = None, config_file: ConfigFile = None, json_: Json = False
) -> None:
    """List what can be asked for, and on this box what it is made of and what it takes."""
    if context.invoked_subcommand is not None:
        return
    if url is not None or json_:
        with connected(url) as client:
            found = fetch(client, "/v1/models")
        if json_:
            print(json.dumps(found, indent=2))
        else:
            Console().print(_names(found["data"]))
        return
    try:
        loaded = config.load(Path(config.find(config_file)))
    except ConfigProblems as error:
        fail(error.message)
    made = plan.make(loaded, hardware.detect(loaded.hardware))
    states = _states(loaded)
    console = Console()
    console.print(_files(made, states))
    console.print(
        f"Models together may take {format_bytes(made.budget_bytes)}."
        + ("" if states else " No daemon answers."),
        highlight=False,
    )


def _names(listed: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("NAME", "FOR", "STATE", "ENGINE", "CONTEXT"):
        table.add_column(name, overflow="fold")
    for model in listed:
        more = model["edged"]
        alias = f" (alias of {more['alias_of']})" if more["alias_of"] else ""
        table.add_row(
            model["id"] + alias,
            more["capabilities"][0],
            Text(more["state"], COLOURS.get(more["state"], "")),
            more["engine"] or "none",
            str(more["context"]),
        )
    return table


def _states(loaded: Config) -> dict[str, str]:
    """Return the state of each model of a running daemon; empty if there is none."""
    try:
        with reach(None, loaded.server.listen[0]) as client:
            found = client.get("/status").raise_for_status().json()
        return {model["name"]: model["state"] for model in found["models"]}
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return {}


def _files(made: Plan, states: dict[str, str]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("MODEL", "STATE", "FILE", "QUANT"):
        table.add_column(name, overflow="fold")
    for name in ("SIZE", "CONTEXT", "TRAINED"):
        table.add_column(name, justify="right")
    table.add_column("TEMPLATE", overflow="fold")
    table.add_column("MEMORY", justify="right")
    table.add_column("FITS", overflow="fold")
    for name, model in made.models.items():
        state = states.get(name, "-")
        source = model.model.gguf or model.model.safetensors or model.model.upstream
        file = model.file
        table.add_row(
            name,
            Text(state, COLOURS.get(state, "")),
            Path(file.path).name if file else str(source),
            file.quantisation if file else "-",
            format_bytes(file.bytes) if file else "-",
            str(model.context) if file else "-",
            str(file.trained_context or "-") if file else "-",
            template_of(Path(file.path)) if file else "-",
            format_bytes(model.memory.total_bytes) if model.memory else "-",
            _where(model),
        )
    return table


def _where(model: ModelPlan) -> Text:
    if model.engine == "upstream":
        return Text("elsewhere")
    if model.refusal:
        return Text(f"no: {model.refusal}", "red")
    if model.is_fetching:
        return Text("not here yet: `edged pull`", "yellow")
    if model.launch is not None and model.launch.lmdeploy is not None:
        return Text(f"on GPU {' and '.join(map(str, model.launch.lmdeploy.devices))}")
    return Text("on the CPU")


def template_of(path: Path) -> str:
    """Return whether a file brings a chat template, and in which format it calls tools."""
    try:
        text = read_text(path, "tokenizer.chat_template")
    except (OSError, StoreError):
        return "cannot be read"
    if not text:
        return "none"
    return f"yes, {formats.find(text).name}"


@app.command("inspect")
def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A GGUF file, or a model's name.")],
    config_file: ConfigFile = None,
    json_: Json = False,
) -> None:
    """Say what a GGUF file is, and whether it fits this box."""
    path, loaded = _path_of(file, config_file)
    try:
        any_header = read_any(path)
        facts = _facts(path, any_header)
        if any_header.metadata.get("general.type", "model") == "model" and (
            any_header.metadata.get("general.architecture") != "clip"
        ):
            facts |= _fit(path, read_header(path), loaded)
    except StoreError as error:
        fail(f"{path} {error.message}")
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}")
    if json_:
        print(json.dumps(facts, indent=2))
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in facts.items():
        shown = format_bytes(value) if key.endswith("bytes") and value is not None else value
        table.add_row(key.removesuffix("_bytes").replace("_", " "), str(shown))
    Console().print(table)


def _path_of(file: str, config_file: str | None) -> tuple[Path, Config]:
    try:
        loaded = config.load(Path(config.find(config_file)))
    except ConfigProblems:
        loaded = Config(path=str(Path("models.toml").absolute()))
    if file in loaded.models and not Path(file).exists():
        made = plan.make(loaded, hardware.detect(loaded.hardware)).models[file]
        if made.file is None:
            fail(f"model {file!r}: {made.refusal or '; '.join(made.reasons)}")
        return Path(made.file.path), loaded
    return Path(file).absolute(), loaded


def _facts(path: Path, header: GgufHeader) -> dict[str, Any]:
    return {
        "file": str(path),
        "file_bytes": header.file_bytes,
        "type": header.metadata.get("general.type", "model"),
        "name": header.name,
        "architecture": header.metadata.get("general.architecture"),
        "quantisation": header.quantisation,
        "weights_by_type": ", ".join(
            f"{kind} {format_bytes(n)}"
            for kind, n in sorted(header.bytes_by_type.items(), key=lambda item: -item[1])
        ),
        "tensors": header.n_tensors,
        "licence": header.metadata.get("general.license"),
    }


def _fit(path: Path, header: GgufHeader, loaded: Config) -> dict[str, Any]:
    """Return what a model would be and take on this box, with the settings of [defaults]."""
    found = hardware.detect(loaded.hardware)
    made = _as_model(path, loaded, found)
    return {
        "kind": header.kind,
        "layers": header.block_count,
        "trained_context": header.context_length,
        "vocabulary": header.n_vocab,
        "chat_template": template_of(path),
        "context": made.context,
        "parallel": made.model.parallel,
        "memory_bytes": made.memory.total_bytes if made.memory else None,
        "memory": msgspec.to_builtins(made.memory),
        "fits": str(_where(made)),
    }


def _as_model(path: Path, loaded: Config, found: Hardware) -> ModelPlan:
    settings = next(iter(loaded.models.values()), None)
    model = Model(
        name="inspected",
        gguf=Source("file", str(path)),
        context=settings.context if settings and settings.context_is_default else 8192,
        context_is_default=True,
        parallel_is_default=True,
    )
    whole = msgspec.structs.replace(loaded, models={"inspected": model})
    return plan.make(whole, found).models["inspected"]
