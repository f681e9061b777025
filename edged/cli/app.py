"""The command line as a whole: what `edged --help` lists."""

from __future__ import annotations

import typer

from edged.cli import (
    ask,
    bench,
    check,
    discover,
    doctor,
    gc,
    key,
    making,
    models,
    moving,
    orders,
    pull,
    serve,
    setup_cuda,
    show,
    tls,
)

app = typer.Typer(
    name="edged",
    help="Turns this box into an LLM appliance: models.toml in, one OpenAI-compatible API out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(
    "serve",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def serve_here(context: typer.Context) -> None:
    """Serve the models of models.toml until told to stop."""
    raise typer.Exit(serve.main(context.args))


app.command("check")(check.check)
app.command("plan")(check.check)
app.command("status")(show.status)
app.add_typer(models.app, name="models")
app.command("reload")(orders.reload)
app.command("load")(orders.load)
app.command("unload")(orders.unload)
app.command("drain")(orders.drain)
app.command("logs")(orders.logs)
app.command("pull")(pull.pull)
app.command("gc")(gc.collect)
app.command("quantize")(making.quantize)
app.command("convert")(making.convert)
app.command("export")(moving.export)
app.command("import")(moving.import_)
app.command("ask")(ask.ask)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
app.command("report")(doctor.report)
app.command("discover")(discover.discover)
app.command("setup-cuda")(setup_cuda.setup_cuda)
app.add_typer(key.keys, name="key")
app.add_typer(tls.tls, name="tls")
app.command("version")(show.version)
