"""`edged serve` with the fake worker instead of the real one, and with short waits.

python serve.py CONFIG FINISH_S [real]
"""

from __future__ import annotations

import sys

from edged import daemon, log
from edged.supervisor.worker_process import WORKER_ARGV
from tests.daemon.support import FAKE_WORKER, LIMITS

if __name__ == "__main__":
    log.configure()
    path, finish_s, *real = sys.argv[1:]
    worker_argv = WORKER_ARGV if real else FAKE_WORKER
    sys.exit(daemon.run(path, worker_argv=worker_argv, limits=LIMITS, finish_s=float(finish_s)))
