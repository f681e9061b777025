"""The drop-ins lan-only.conf, with packets from a network that is not private."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import httpx
import pytest

from tests.appliance.conftest import RELEASES, Packages, install
from tests.appliance.machine import GUEST_IP, PATIENCE_S, Machine, booted

FAR, FAR_GUEST = "203.0.113.1", "203.0.113.2"  # kept for documents, routed nowhere
EXAMPLES = "/usr/share/doc/edged/examples"


@pytest.fixture(scope="module")
def machine(packages: Packages) -> Iterator[Machine]:
    """Unified control groups, as Debian has them: only there systemd filters addresses."""
    with booted(RELEASES[-1], name="edgedwall", network="veth", unified=True) as found:
        found.hurry()
        install(found, packages.first)
        subprocess.run(["ip", "addr", "add", f"{FAR}/24", "dev", "ve-edgedwall"], check=True)
        found.sh(f"ip addr add {FAR_GUEST}/24 dev host0")
        found.until("systemctl is-active edged")
        yield found


def status(address: str, limit_s: float = PATIENCE_S) -> int:
    url = f"http://{address}:8000/health"
    return httpx.get(url, timeout=limit_s, trust_env=False).status_code


def test_kernel_drops_what_does_not_come_from_a_private_network(machine: Machine) -> None:
    assert status(GUEST_IP) == 200
    assert status(FAR_GUEST) == 403, "`allow` refuses it, after it was read"
    machine.sh(
        f"install -D -m 644 {EXAMPLES}/lan-only.conf "
        "/etc/systemd/system/edged.service.d/lan-only.conf; "
        f"install -D -m 644 {EXAMPLES}/lan-only-socket.conf "
        "/etc/systemd/system/edged.socket.d/lan-only.conf; "
        "systemctl daemon-reload; systemctl restart edged.socket edged"
    )
    machine.until("systemctl is-active edged")
    if "BPF/cgroup firewalling" in machine.sh("journalctl -b --no-pager"):
        pytest.skip("systemd finds no BPF firewall in this kernel")
    assert status(GUEST_IP) == 200
    with pytest.raises(httpx.ConnectTimeout):
        status(FAR_GUEST, 3)
    machine.sh("curl -sf http://127.0.0.1:8000/health")


def test_half_of_it_is_not_enough(machine: Machine) -> None:
    """What a socket unit holds is filtered by the socket's unit alone."""
    machine.sh(
        "rm /etc/systemd/system/edged.socket.d/lan-only.conf; "
        "systemctl daemon-reload; systemctl restart edged.socket edged"
    )
    machine.until("systemctl is-active edged")
    assert status(FAR_GUEST) == 403
