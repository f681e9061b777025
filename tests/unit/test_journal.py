"""The journal's native protocol, against a real socket that plays the journal."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from edged import journal


def fields_of(data: bytes) -> dict[str, str]:
    """Read a datagram as journald does."""
    found = {}
    while data:
        head, _, rest = data.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if equals:
            found[name.decode()], data = value.decode(), rest
        else:
            length = struct.unpack("<Q", rest[:8])[0]
            found[name.decode()] = rest[8 : 8 + length].decode()
            assert rest[8 + length : 9 + length] == b"\n"
            data = rest[9 + length :]
    return found


def test_fields_go_beside_the_text() -> None:
    fields = {"event": "request.done", "level": "warning", "request_id": "r-1", "none": None}
    found = fields_of(journal.encode("two\nlines", fields | {"odd-näme": "a=b\nc"}))
    assert found == {
        "MESSAGE": "two\nlines",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "edged",
        "EDGED_EVENT": "request.done",
        "EDGED_REQUEST_ID": "r-1",
        "EDGED_ODD_N_ME": "a=b\nc",
    }


def test_line_too_large_for_a_datagram_comes_as_a_sealed_file(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(path)
        inbox.settimeout(30)
        line = journal.Line("x" * 1_000_000)
        line.fields = {"model": "m"}
        with closing(journal.Journal(path)) as outbox:
            outbox.msg(line)
        _, fds, _, _ = socket.recv_fds(inbox, 10, 1)
        with os.fdopen(fds[0], "rb") as file:
            file.seek(0)
            found = fields_of(file.read())
    assert len(found["MESSAGE"]) == 1_000_000
    assert found["EDGED_MODEL"] == "m"


def test_without_a_journal_the_line_goes_to_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with closing(journal.Journal(str(tmp_path / "nobody"))) as outbox:
        outbox.msg("hello")
    assert capfd.readouterr().err == "hello\n"


SPEAKS = """
import os, sys
found = os.fstat(2)
if sys.argv[2] == "right":
    os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
from edged import journal, log
journal.Journal.__init__.__defaults__ = (sys.argv[1],)
log.configure()
log.get_logger().info("request.done", model="m", key="anna")
"""


@pytest.mark.parametrize("stream", ["right", "1:2"])
def test_log_speaks_natively_only_where_stderr_is_the_journal(tmp_path: Path, stream: str) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(path)
        inbox.settimeout(30)
        ran = subprocess.run(
            [sys.executable, "-c", SPEAKS, path, stream],
            env=os.environ | {"JOURNAL_STREAM": stream},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        if stream == "right":
            found = fields_of(inbox.recv(65536))
            assert found["MESSAGE"] == "[info] request.done key=anna model=m"
            assert (found["EDGED_MODEL"], found["EDGED_KEY"]) == ("m", "anna")
            assert ran.stderr == ""
        else:
            assert "request.done" in ran.stderr
