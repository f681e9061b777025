"""The `edged` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; `serve` comes first, so that the daemon never loads the rest."""
    if sys.argv[1:2] == ["serve"]:
        from edged.cli import serve  # noqa: PLC0415

        sys.exit(serve.main(sys.argv[2:]))
    from edged.cli.app import app  # noqa: PLC0415

    app(prog_name="edged")
