"""systemd's manners against real sockets and processes, and the unit file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.daemon.systemd import Notifier, listen_sockets

UNIT = Path(__file__).parent.parent.parent / "systemd" / "edged.service"


@pytest.fixture(params=["path", "abstract"])
def inbox(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """Play systemd: a datagram socket, named in the environment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        if request.param == "path":
            name = str(tmp_path / "notify")
            receiver.bind(name)
        else:
            name = f"@edged-test-{os.getpid()}-{time.monotonic_ns()}"
            receiver.bind("\0" + name[1:])
        receiver.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        monkeypatch.setenv("WATCHDOG_USEC", "20000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield receiver


def received(inbox: socket.socket) -> list[str]:
    return inbox.recv(4096).decode().split("\n")


def test_notifier_says_each_state(inbox: socket.socket) -> None:
    notifier = Notifier()
    assert notifier.enabled
    notifier.ready("2 models")
    assert received(inbox) == ["READY=1", "STATUS=2 models"]
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    reloading, usec, _ = received(inbox)
    assert reloading == "RELOADING=1"
    assert before <= int(usec.removeprefix("MONOTONIC_USEC=")) <= before + 60_000_000
    notifier.alive()
    assert received(inbox) == ["WATCHDOG=1"]
    notifier.extend_timeout(1.5, "loading")
    assert received(inbox) == ["EXTEND_TIMEOUT_USEC=1500000", "STATUS=loading"]
    notifier.status("ok")
    assert received(inbox) == ["STATUS=ok"]
    notifier.stopping()
    assert received(inbox)[0] == "STOPPING=1"


def test_status_of_several_lines_stays_one_assignment(inbox: socket.socket) -> None:
    Notifier().status("one\nREADY=1")
    assert received(inbox) == ["STATUS=one READY=1"]


@pytest.mark.usefixtures("inbox")
def test_watchdog_beats_at_half_the_interval() -> None:
    assert Notifier().watchdog_s == 10.0


@pytest.mark.usefixtures("inbox")
def test_watchdog_of_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notifier().watchdog_s is None


@pytest.mark.usefixtures("inbox")
def test_environment_is_taken_so_that_children_do_not_see_it() -> None:
    Notifier()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()


def test_without_systemd_everything_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    notifier.ready("nobody listens")
    assert not notifier.enabled
    assert notifier.watchdog_s is None


def test_full_or_dead_socket_neither_blocks_nor_raises(inbox: socket.socket) -> None:
    notifier = Notifier()
    for _ in range(10_000):
        notifier.status("x" * 100)
    inbox.close()
    notifier.status("x")


ACTIVATED = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
from edged.daemon.systemd import listen_sockets
taken = listen_sockets()
first = [(given.name, given.socket.getsockname()[1]) for given in taken]
inherited = [os.get_inheritable(fd) for fd in (3, 4)]
left = [name for name in os.environ if name.startswith("LISTEN_")]
print(first, listen_sockets(), left, inherited)
"""


@pytest.mark.parametrize("offset", [0, 1])
def test_sockets_are_taken_once_and_only_by_the_right_process(offset: int) -> None:
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
            each.listen()
        ports = [each.getsockname()[1] for each in (one, two)]
        # The shell puts them where systemd would: at descriptors 3 and 4.
        command = (
            f"exec {sys.executable} -c '{ACTIVATED}' {offset} 3<&{one.fileno()} 4<&{two.fileno()}"
        )
        done = subprocess.run(
            ["bash", "-c", command],
            pass_fds=(one.fileno(), two.fileno()),
            env=os.environ | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:https"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    if offset:
        assert done.stdout == "[] [] [] [True, True]\n"
    else:
        assert (
            done.stdout
            == f"{list(zip(('http', 'https'), ports, strict=True))} [] [] [False, False]\n"
        )


@pytest.mark.parametrize("count", ["", "x", "-1"])
def test_senseless_activation_is_none(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    assert listen_sockets() == []


def verified(folder: Path, *drop_ins: Path) -> tuple[int, str]:
    """Let systemd read the units as they would be installed; return its code and complaints."""
    program = folder / "edged"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = UNIT.read_text()
    assert text.count("/usr/bin/edged") == 2
    sockets = [UNIT.with_suffix(".socket"), UNIT.with_name("edged-https.socket")]
    for each in sockets:
        shutil.copy(each, folder)
    (folder / "edged.service").write_text(text.replace("/usr/bin/edged", str(program)))
    for drop_in in drop_ins:
        kind = "socket" if drop_in.stem.endswith("-socket") else "service"
        target = folder / f"edged.{kind}.d"
        target.mkdir()
        shutil.copy(drop_in, target)
    units = [folder / "edged.service", *(folder / each.name for each in sockets)]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_unit_file_is_valid(tmp_path: Path) -> None:
    assert verified(tmp_path) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("drop_in", sorted(UNIT.parent.glob("*.conf")), ids=lambda each: each.stem)
def test_drop_in_is_valid(tmp_path: Path, drop_in: Path) -> None:
    assert verified(tmp_path, drop_in) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_fault_in_a_drop_in_would_be_seen(tmp_path: Path) -> None:
    """That systemd reads drop-ins beside the unit is what the test before this relies on."""
    wrong = tmp_path / "wrong.conf"
    wrong.write_text("[Service]\nDeviceAlow=char-drm rw\n")
    assert "DeviceAlow" in verified(tmp_path, wrong)[1]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_unit_is_as_closed_as_promised() -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=15", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def test_unit_file_agrees_with_the_daemon() -> None:
    text = UNIT.read_text()
    for line in (
        "Type=notify",
        "RestartPreventExitStatus=78",
        "OOMPolicy=continue",
        "Restart=on-failure",
        "ExecReload=/usr/bin/edged reload",
    ):
        assert line in text.splitlines()
    assert "WatchdogSec=" in text
