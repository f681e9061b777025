"""`edged setup-cuda`: the environment for LMDeploy on NVIDIA GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from edged import hardware
from edged.cli.client import ConfigFile, fail
from edged.cli.tls import load_config, state_folder
from edged.cuda.installing import Setup, SetupError, Went, remove


def setup_cuda(
    config_file: ConfigFile = None,
    wheelhouse: Annotated[
        Path | None,
        typer.Option(
            "--wheelhouse", metavar="DIR", help="Take the wheels from here, not from the network."
        ),
    ] = None,
    remove_: Annotated[bool, typer.Option("--remove", help="Take it away again.")] = False,
) -> None:
    """Install LMDeploy for NVIDIA GPUs into an environment of its own (some 10 GB).

    The same command goes on where it was broken off.
    """
    state = state_folder(config_file)
    try:
        if remove_:
            for path in remove(state):
                print(f"{path} is gone.")
            print("Models on LMDeploy leave it with the next `edged reload`.")
        else:
            _install(state, config_file, wheelhouse)
    except SetupError as error:
        fail(error.message)
    except OSError as error:
        fail(f"{error.filename or state}: {error.strerror}; run this with sudo?")
    except KeyboardInterrupt:
        fail("broken off; the same command goes on from here")


def _install(state: Path, config_file: str | None, wheelhouse: Path | None) -> None:
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=None)

        def tell(went: Went) -> None:
            bars.update(task, description=went.doing, completed=went.done, total=went.total)
            if not console.is_terminal:
                console.print(f"{went.done}/{went.total} {went.doing}", highlight=False)

        setup = Setup(state, wheelhouse=wheelhouse and wheelhouse.absolute(), tell=tell)
        gpu = setup.check(hardware.detect(load_config(config_file).hardware))
        setup.install()
        stamp = setup.verify(trial_on=gpu)
    print(f"LMDeploy {stamp.lmdeploy} with torch {stamp.torch} is in {setup.folder}.")
    print("It generated a token. `edged reload` lets models with safetensors = … use it.")
