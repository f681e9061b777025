"""A Debian with systemd as PID 1, booted in a container of this test's own.

Every machine is an overlay over a pristine root file system, so it starts clean and leaves nothing.
Nothing here needs a bus, machined or cgroup v2 on the host.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("EDGED_TEST_CACHE", "~/.cache/edged-tests")).expanduser() / "appliance"
PATIENCE_S = 120.0
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
HOST_IP, GUEST_IP = "172.31.99.1", "172.31.99.2"

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "DEBIAN_FRONTEND": "noninteractive",
    "SYSTEMD_PAGER": "",
    "SYSTEMD_COLORS": "0",
    "COLUMNS": "200",
    "NO_COLOR": "1",
}
# nspawn mounts the v1 controllers read-only, and systemd then ignores its limits without a word.
_INIT = """#!/bin/sh
for c in /sys/fs/cgroup/*; do
  [ -e "$c/cgroup.procs" ] && mount -o remount,bind,rw "$c" 2>/dev/null
done
exec /lib/systemd/systemd "$@"
"""


def obstacle() -> str | None:
    """Return why no machine can be booted here; None if one can."""
    if os.geteuid() != 0:
        return "booting a system needs root"
    for tool, package in (
        ("systemd-nspawn", "systemd-container"),
        ("mmdebstrap", "mmdebstrap"),
        ("dpkg-deb", "dpkg"),
        ("ip", "iproute2"),
        ("apt-ftparchive", "apt-utils"),
        ("gpg", "gnupg"),
    ):
        if shutil.which(tool) is None:
            return f"{tool} is missing: apt-get install {package}"
    if subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "true"],
        capture_output=True,
        check=False,
    ).returncode:
        return "namespaces may not be made here"
    CACHE.mkdir(parents=True, exist_ok=True)
    with scratch() as folder:
        try:
            with overlay(folder, folder):
                return None
        except subprocess.CalledProcessError as error:
            return f"overlays may not be mounted here: {error.stderr.strip()}"


@contextmanager
def scratch() -> Iterator[Path]:
    """Give an empty folder on the disk of the cache: an overlay may not lie on another one."""
    folder = CACHE / f"scratch-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove what a run left that was killed; its machines have ended with it."""
    for left in CACHE.glob("scratch-*"):
        if not Path(f"/proc/{left.name.split('-')[1]}").exists():
            subprocess.run(["umount", "--lazy", left / "merged"], check=False, capture_output=True)
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def overlay(lower: Path, folder: Path) -> Iterator[Path]:
    for name in ("upper", "work", "merged"):
        (folder / name).mkdir(exist_ok=True)
    layers = f"lowerdir={lower},upperdir={folder}/upper,workdir={folder}/work"
    merged = folder / "merged"
    subprocess.run(
        ["mount", "-t", "overlay", "edged-test", "-o", layers, str(merged)],
        check=True,
        capture_output=True,
        text=True,
    )
    try:
        yield merged
    finally:
        subprocess.run(["umount", "--lazy", str(merged)], check=True)


def root_of(suite: str) -> Path:
    """Return the pristine root file system of a Debian release; made once, then cached."""
    root = CACHE / suite
    if not root.exists():
        done = subprocess.run(
            [HERE / "make-root", suite, root],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, f"make-root {suite}: {done.stdout[-300:]}"
    return root


class Machine:
    """A booted system; `run` is a command in it."""

    def __init__(self, leader: int, log: Path) -> None:
        self._leader = leader
        self._log = log

    def run(
        self, *command: str, ok: bool = True, limit_s: float = PATIENCE_S, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root; its output comes back, stderr after stdout."""
        done = subprocess.run(
            self._entered(command),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=limit_s,
            env=_ENVIRONMENT,
        )
        assert not ok or done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
        return done

    def sh(self, script: str, *, ok: bool = True, limit_s: float = PATIENCE_S) -> str:
        """Run a shell script and return what it prints."""
        return self.run("sh", "-c", script, ok=ok, limit_s=limit_s).stdout.strip()

    def spawn(self, *command: str) -> subprocess.Popen[str]:
        """Begin a command."""
        return subprocess.Popen(
            self._entered(command), stdout=subprocess.PIPE, text=True, env=_ENVIRONMENT
        )

    def push(self, source: Path, folder: str) -> None:
        """Copy a file into a folder of the machine."""
        target = Path(f"/proc/{self._leader}/root{folder}")
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)

    def path(self, path: str) -> Path:
        """Return where a file of the machine is for us."""
        return Path(f"/proc/{self._leader}/root{path}")

    def hurry(self) -> None:
        """Let dpkg wait for no disk any more: nothing here outlives the test."""
        self.path("/etc/dpkg/dpkg.cfg.d/hurry").write_text("force-unsafe-io\n")

    def until(self, script: str, *, limit_s: float = PATIENCE_S) -> str:
        """Wait until a shell script succeeds, and return what it prints."""
        end = time.monotonic() + limit_s
        while (done := self.run("sh", "-c", script, ok=False)).returncode:
            assert time.monotonic() < end, f"{script}: {done.stdout}\n{self.journal()}"
            time.sleep(0.1)
        return done.stdout.strip()

    def show(self, prop: str, unit: str = "edged.service") -> str:
        return self.sh(f"systemctl show -P {prop} {unit}")

    def journal(self, *arguments: str) -> str:
        return self.run("journalctl", "-u", "edged", "-o", "cat", *arguments, ok=False).stdout

    def _entered(self, command: tuple[str, ...]) -> list[str]:
        spaces = ["-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]
        return ["nsenter", "-t", str(self._leader), *spaces, *command]


@contextmanager
def booted(
    suite: str, *, name: str, network: str = "private", unified: bool = False
) -> Iterator[Machine]:
    """Boot a release. `network`: private (loopback only) or veth (a wire to this host's side).

    `unified`: cgroup v2 only, where the firewall by address works and memory limits may not.
    """
    root = root_of(suite)
    # A run that was killed may have left its wire.
    subprocess.run(["ip", "link", "delete", f"ve-{name}"], check=False, capture_output=True)
    with scratch() as folder, overlay(root, folder) as merged, _cgroups(name) as groups:
        init = folder / "init"
        init.write_text(_INIT)
        init.chmod(0o755)
        (merged / "etc/hostname").write_text(f"{name}\n")  # else it would have this host's
        log = folder / "console"
        wire = ["--network-veth"] if network == "veth" else ["--private-network"]
        command = [
            *("systemd-nspawn", "-D", str(merged), "-M", name, "--register=no", "--keep-unit"),
            *("--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
            *("--settings=no", "--notify-ready=yes", "--kill-signal=SIGRTMIN+3"),
            *("--capability=all", "--system-call-filter=bpf keyctl add_key request_key"),
            *(f"--bind-ro={init}:/run/edged-init", *wire, "/run/edged-init"),
        ]
        environment = os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": str(int(unified))}
        environment.pop("NOTIFY_SOCKET", None)

        def join() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # it must not outlive the tests
            for group in groups:
                with contextlib.suppress(OSError):
                    (group / "cgroup.procs").write_text(str(os.getpid()))

        with log.open("wb") as sink:
            nspawn = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment,
                start_new_session=True,
                preexec_fn=join,  # noqa: PLW1509 - this process has one thread
            )
        leader = None
        try:
            leader = _leader_of(nspawn, log)
            machine = Machine(leader, log)
            if network == "veth":
                _connect(machine, name)
            machine.until(
                "case $(systemctl is-system-running) in running|degraded) ;; *) exit 1;; esac"
            )
            yield machine
        finally:
            _shut_down(nspawn, leader)


def _leader_of(nspawn: subprocess.Popen[bytes], log: Path) -> int:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        assert nspawn.poll() is None, log.read_text(errors="replace")
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/exe").readlink().name == "systemd":
                    return int(child)
        time.sleep(0.05)
    raise AssertionError(f"no PID 1 appeared: {log.read_text(errors='replace')}")


def _connect(machine: Machine, name: str) -> None:
    for command in (
        ["ip", "addr", "add", f"{HOST_IP}/24", "dev", f"ve-{name}"],
        ["ip", "link", "set", f"ve-{name}", "up"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    machine.sh(f"ip addr add {GUEST_IP}/24 dev host0; ip link set host0 up")


def _shut_down(nspawn: subprocess.Popen[bytes], leader: int | None) -> None:
    """End it as a power cut does: nothing of it is kept, and nobody waits for it to halt."""
    if leader is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, signal.SIGKILL)
    else:
        nspawn.send_signal(signal.SIGTERM)
    try:
        nspawn.wait(30)
    except subprocess.TimeoutExpired:
        nspawn.kill()
        nspawn.wait()


@contextmanager
def _cgroups(name: str) -> Iterator[list[Path]]:
    """Give a group of our own in every hierarchy, so that machines do not meet in one."""
    made = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        mount = Path("/sys/fs/cgroup") / (controllers.removeprefix("name=") or "unified")
        if not mount.exists():
            mount = Path("/sys/fs/cgroup")
        group = mount / path.lstrip("/") / f"edged-test-{name}"
        with contextlib.suppress(OSError):
            group.mkdir(exist_ok=True)
            if controllers == "cpuset":
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (group / file).write_text((group.parent / file).read_text())
            made.append(group)
    try:
        yield made
    finally:
        for group in made:
            for each in sorted(group.rglob("*"), key=lambda p: -len(p.parts)):
                if each.is_dir():
                    with contextlib.suppress(OSError):
                        each.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()
