"""`make chaos`: ten minutes of it, and the report for docs/reliability.md.

python -m tests.chaos [--seconds N] [--seed N] [--report FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from tests.chaos.run import Chaos

_BEGIN, _END = "<!-- chaos -->\n", "<!-- end of chaos -->"


def main() -> int:
    """Run it, print the report, write it where asked; return 1 if a rule was broken."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--report", type=Path, help="its part between two marks is replaced")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edged-chaos-") as folder:
        chaos = Chaos(Path(folder), seconds=asked.seconds, seed=asked.seed)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            record = runner.run(chaos.run())
        log = Path(folder, "log").read_text()
    title = f"{asked.seconds:.0f} s, seed {asked.seed}, {time.strftime('%Y-%m-%d', time.gmtime())}"
    if chaos.sizes_mib:
        title += f"; MiB of the daemon after each round of all faults: {chaos.sizes_mib}"
    text = record.report(f"{title}.")
    print(text)
    if asked.report:
        page = asked.report.read_text()
        before, _, rest = page.partition(_BEGIN)
        asked.report.write_text(
            before + _BEGIN + "\n" + text + "\n" + _END + rest.partition(_END)[2]
        )
    if record.broken():
        kept = Path(tempfile.gettempdir(), "edged-chaos.log")
        kept.write_text(log)
        print(f"the daemon's log: {kept}", file=sys.stderr)
    return 1 if record.broken() else 0


if __name__ == "__main__":
    sys.exit(main())
