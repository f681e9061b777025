"""systemd's side of the daemon: sd_notify, watchdog, socket activation. No library needed.

Everything is a no-op when systemd did not start us. What systemd put into the environment is
taken out of it, so that no child believes that it was meant. Sources: sd_notify(3),
sd_listen_fds(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import NamedTuple

_FIRST_FD = 3  # SD_LISTEN_FDS_START


class Notifier:
    """Tells systemd how the service is. Never blocks and never fails: it is only advice."""

    def __init__(self) -> None:
        path = os.environ.pop("NOTIFY_SOCKET", "")
        usec = os.environ.pop("WATCHDOG_USEC", "")
        pid = os.environ.pop("WATCHDOG_PID", "")
        # Half of what systemd waits; None: no watchdog.
        self.watchdog_s: float | None = None
        if usec.isdecimal() and pid in {"", str(os.getpid())}:
            self.watchdog_s = int(usec) / 1e6 / 2
        # A leading @ means the abstract namespace.
        self._address = "\0" + path[1:] if path.startswith("@") else path

    @property
    def enabled(self) -> bool:
        """True when somebody listens."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Say that the service is up, or done with a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Begin a reload; `ready` ends it. Type=notify-reload wants the time as well."""
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={usec}", "STATUS=reloading the configuration")

    def stopping(self) -> None:
        """Begin to stop."""
        self._send("STOPPING=1", "STATUS=stopping: open requests may finish")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float, status: str) -> None:
        """Ask for this long from now before a start or stop counts as failed."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", f"STATUS={status}")

    def _send(self, *pairs: str) -> None:
        if not self._address:
            return
        message = "\n".join(pair.replace("\n", " ") for pair in pairs)
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outbox,
        ):
            outbox.sendto(message.encode(), socket.MSG_DONTWAIT, self._address)


class Given(NamedTuple):
    """A socket that systemd holds, and the name that its unit gives it."""

    name: str
    socket: socket.socket


def listen_sockets() -> list[Given]:
    """Return the sockets that systemd opened for us, in its order; only the first call has them."""
    count = os.environ.pop("LISTEN_FDS", "")
    pid = os.environ.pop("LISTEN_PID", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if not count.isdecimal() or pid != str(os.getpid()):
        return []
    sockets = []
    for number in range(int(count)):
        os.set_inheritable(_FIRST_FD + number, False)
        name = names[number] if number < len(names) else ""
        sockets.append(Given(name, socket.socket(fileno=_FIRST_FD + number)))
    return sockets
