"""systemd's journal, spoken natively: fields beside the text (`journalctl EDGED_MODEL=x`).

Source: https://systemd.io/JOURNAL_NATIVE_PROTOCOL. No library needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import struct
from collections.abc import Mapping
from typing import Any

_SOCKET = "/run/systemd/journal/socket"
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_NOT_IN_NAMES = re.compile(r"[^A-Z0-9_]")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def is_stderr(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether stderr goes to the journal: only then nobody misses text on it."""
    said = environment.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return said == f"{found.st_dev}:{found.st_ino}"


class Line(str):  # noqa: SLOT000 - it has a field
    """A line of text that carries its fields."""

    fields: Mapping[str, Any]


class Journal:
    """Sends lines to the journal; what it does not take goes to stderr. Any thread may write."""

    def __init__(self, path: str = _SOCKET) -> None:
        self._path = path
        self._outbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def close(self) -> None:
        """Send nothing more."""
        self._outbox.close()

    def msg(self, line: str) -> None:
        """Send one line."""
        fields = getattr(line, "fields", {})
        try:
            self._send(encode(str(line), fields))
        except OSError:
            with contextlib.suppress(OSError):
                os.write(2, f"{line}\n".encode())

    log = debug = info = warning = error = critical = exception = msg  # as structlog calls it

    def _send(self, data: bytes) -> None:
        try:
            self._outbox.sendto(data, self._path)
        except OSError as error:
            if error.errno is None:
                raise
            self._send_file(data)  # too large for a datagram

    def _send_file(self, data: bytes) -> None:
        handle = os.memfd_create("journal", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            os.write(handle, data)
            fcntl.fcntl(handle, fcntl.F_ADD_SEALS, _SEALS)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outbox:
                outbox.connect(self._path)
                socket.send_fds(outbox, [b""], [handle])
        finally:
            os.close(handle)


def encode(text: str, fields: Mapping[str, Any]) -> bytes:
    """Return the datagram of one line; a field `model` becomes EDGED_MODEL."""
    level = str(fields.get("level", "info"))
    said = {
        "MESSAGE": text,
        "PRIORITY": _PRIORITIES.get(level, 6),
        "SYSLOG_IDENTIFIER": "edged",
    }
    said |= {
        f"EDGED_{_NOT_IN_NAMES.sub('_', name.upper())[:50]}": value
        for name, value in fields.items()
        if value is not None and name not in {"level", "exception"}
    }
    return b"".join(_pair(name, value) for name, value in said.items())


def _pair(name: str, value: Any) -> bytes:
    content = str(value).encode("utf-8", "backslashreplace")
    if b"\n" not in content:
        return name.encode() + b"=" + content + b"\n"
    return name.encode() + b"\n" + struct.pack("<Q", len(content)) + content + b"\n"
