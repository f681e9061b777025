"""A worker's process, and all that is needed to follow it: whole, or nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Sequence
from typing import NamedTuple


class Spawned(NamedTuple):
    """A process, our end of its socket, and what tells its end."""

    process: subprocess.Popen[bytes]  # with its stderr as a pipe
    ours: socket.socket
    pidfd: int


def spawn(argv: Sequence[str]) -> Spawned:
    """Start `argv` with the number of its socket's descriptor appended; takes a millisecond.

    Raises OSError: no descriptor, process id or memory is left, or there is no such program.
    """
    with contextlib.ExitStack() as undo:
        ours, theirs = map(undo.enter_context, socket.socketpair())
        process = subprocess.Popen(
            [*argv, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # Ctrl-C belongs to the daemon alone
        )
        undo.enter_context(process)  # closes the pipe, and reaps it
        undo.callback(process.kill)
        pidfd = os.pidfd_open(process.pid)
        undo.pop_all()
    theirs.close()
    return Spawned(process, ours, pidfd)
