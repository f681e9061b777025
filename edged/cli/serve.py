"""`edged serve`: argparse instead of typer, because this process stays and shall stay small."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from edged import log

_LEVELS = ("debug", "info", "warning", "error")


def main(argv: Sequence[str]) -> int:
    """Serve until told to stop; returns 0, 1, 2 or 78 (configuration)."""
    parser = argparse.ArgumentParser(
        prog="edged serve",
        description="Serve the models of models.toml until SIGTERM or Ctrl-C. "
        "Every saved change of the file is applied by itself; SIGHUP asks for it.",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="what to serve; without it ./models.toml, else /etc/edged/models.toml",
    )
    parser.add_argument("--log-level", choices=_LEVELS, default="info", help="default: info")
    parser.add_argument("--log-json", action="store_true", help="log lines as JSON, to stderr")
    options = parser.parse_args(argv)
    log.configure(options.log_level, json=options.log_json)
    try:
        from edged import daemon  # noqa: PLC0415 -- after the log: its imports may warn
    except ImportError as error:
        print(f"edged is not installed completely: {error}; try `make run`", file=sys.stderr)
        return 1
    return daemon.run(options.config)
