"""`python -m edged.pull --config FILE MODEL`: the child that fetches for the daemon.

Fetches what one model is missing and says so in lines of JSON: `Progress`, and at the end `Ended`.
Downloading and hashing gigabytes beside the daemon's loop would cost its streams their pace; a
child is also stopped at any moment, and dies with the daemon.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import msgspec

from edged import config, hardware, plan
from edged.errors import ConfigError, StoreError, Unreachable
from edged.pull.auto import picker
from edged.pull.progress import Ended, Line, Went
from edged.pull.pulling import Pull

_PR_SET_PDEATHSIG = 1
_NICENESS = 10


def main(config_path: str, model: str) -> int:
    """Fetch what `model` is missing; return the exit code."""
    _die_with_the_daemon()
    os.nice(_NICENESS)
    try:
        _fetch(Path(config_path), model)
    except (StoreError, ConfigError) as error:
        _say(Ended(error.message, passing=isinstance(error, Unreachable)))
        return 1
    _say(Ended())
    return 0


def _fetch(path: Path, model: str) -> None:
    loaded = config.load(path)
    found = hardware.detect(loaded.hardware)
    made = plan.make(loaded, found)
    if model not in made.models:
        return
    wanted = made.models[model]
    with Pull(loaded, picker(loaded, lambda: found), lambda p: _say(Went(p))) as pull:
        for source in wanted.missing:
            pull.fetch(pull.resolve(source, model, wanted.form_of(source)))


def _say(line: Line) -> None:
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


def _die_with_the_daemon() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died a moment before
        sys.exit(1)


if __name__ == "__main__":
    _, flag, config_file, name = sys.argv
    assert flag == "--config"
    sys.exit(main(config_file, name))
