"""`edged serve` with the fake worker instead of the real one, and with short waits.

python serve.py CONFIG FINISH_S
"""

from __future__ import annotations

import sys

from edged import daemon, log
from tests.daemon.support import FAKE_WORKER, LIMITS

if __name__ == "__main__":
    log.configure()
    sys.exit(
        daemon.run(sys.argv[1], worker_argv=FAKE_WORKER, limits=LIMITS, finish_s=float(sys.argv[2]))
    )
