"""``edged serve CONFIG`` with the null engine instead of llama.cpp."""

import sys
from pathlib import Path

from edged import daemon, log

if __name__ == "__main__":
    log.configure("warning")  # as quiet as its peer: a line for each request is no part of this
    worker = (sys.executable, str(Path(__file__).with_name("null_engine.py")))
    sys.exit(daemon.run(sys.argv[1], worker_argv=worker))
