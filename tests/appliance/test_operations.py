"""docs/operations.md, done as it is written: on one box, then on the one that takes its place."""

from __future__ import annotations

import hashlib
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edged.hardware import cuda
from tests.appliance.clients import HTTPS_URL, URL, Load, status_of
from tests.appliance.conftest import RELEASES, Packages
from tests.appliance.machine import PATIENCE_S, Machine, booted
from tests.appliance.recipes import PAGE, SUDO, documented
from tests.models.tiny import tiny

MOVING = "Back up, restore, move to another box"
CONFIG = "/etc/edged/models.toml"
EXAMPLES = "/usr/share/doc/edged/examples"


def install(machine: Machine, packages: Packages) -> str:
    """Install as the page says; return what all its commands print."""
    machine.hurry()
    machine.push(packages.first, "/root")
    here = f"/root/{packages.first.name}"
    return machine.sh(documented("Install", 0, package=here), limit_s=300)


@pytest.fixture(scope="module")
def old(packages: Packages) -> Iterator[Machine]:
    assert packages.first
    with booted(RELEASES[-1], name="edgedold", network="veth") as machine:
        yield machine


@pytest.fixture(scope="module", autouse=True)
def said(old: Machine, packages: Packages) -> str:
    return install(old, packages)


def client(key: str, **more: object) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.Client(headers=headers, timeout=PATIENCE_S, trust_env=False, **more)  # type: ignore[arg-type]


def test_installation_shows_the_key_and_a_green_doctor(said: str) -> None:
    """The commands end at the first that fails; the doctor is the last of them."""
    key = next(line for line in said.splitlines() if line.startswith("sk-edged-"))
    assert f"({URL}/v1, and a key of" in said
    with client(key) as ours:
        assert ours.get(f"{URL}/v1/models").status_code == 200


def test_model_file_from_a_stick_answers(old: Machine) -> None:
    """Without any network: as the page says, with a name of a file for NAME."""
    old.push(tiny("plain"), "/srv/models")
    path = f"/srv/models/{tiny('plain').name}"
    assert 'gguf = "file:/srv/models/NAME.gguf"' in PAGE.read_text()
    old.sh(
        f"printf '[models.stick]\\ngguf = \"file:{path}\"\\ncontext = 64\\n' >> {CONFIG}; "
        "systemctl reload edged"
    )
    old.sh("edged ask --model stick Hello")


def test_listening_elsewhere_and_stopping(old: Machine) -> None:
    """The drop-in that `systemctl edit edged.socket` makes, and both units stopped at once."""
    folder = "/etc/systemd/system/edged.socket.d"
    old.sh(
        f"mkdir -p {folder}; "
        f"printf '[Socket]\\nListenStream=\\nListenStream=127.0.0.1:8000\\n' > {folder}/o.conf; "
        "systemctl daemon-reload; systemctl restart edged.socket edged"
    )
    with pytest.raises(httpx.ConnectError), client("x") as ours:
        ours.get(f"{URL}/health")
    said = old.sh("edged doctor")
    assert "(http://127.0.0.1:8000/v1, with any key)" in said
    assert "no other box can reach this one" in said
    old.sh(f"rm -r {folder}; systemctl daemon-reload; systemctl restart edged.socket edged")
    old.sh("systemctl stop edged.socket edged")
    with pytest.raises(httpx.ConnectError), client("x") as ours:
        ours.get(f"{URL}/health")
    for unit in ("edged.socket", "edged.service"):
        assert old.show("ActiveState", unit) == "inactive"
    old.sh("systemctl start edged.socket edged")


def test_https_too_refuses_nobody_while_systemd_holds_its_port(old: Machine) -> None:
    """With the example's unit, by the commands in its head.

    `reset-failed`: nobody restarts it as often within a minute, and systemd would refuse the sixth.
    """
    old.sh(f"printf '[server.tls]\\nmode = \"self-signed\"\\n' >> {CONFIG}; systemctl reload edged")
    head = old.sh(f"sed -n 's/^#   //p' {EXAMPLES}/edged-https.socket")
    assert head.count("\n") == 1
    old.sh(f"set -e\nsystemctl reset-failed edged\n{head}")
    key = old.sh("edged key add steady").splitlines()[-1]
    old.until("edged key list | grep -q steady")
    with client(key) as ours:
        trust = ssl.create_default_context(cadata=ours.get(f"{URL}/ca.crt").text)
    load = Load(key, trust)
    load.start()
    load.until(5)
    for _ in range(2):
        old.sh("systemctl reset-failed edged; systemctl restart edged")
        load.until(5)
    seen = load.end()
    print(f"\nHTTPS: two restarts, {seen.total()} requests, {dict(seen)}")
    assert set(seen) == {"200"}, seen
    assert "[::]:8443 (TLS)" in old.sh("edged doctor")
    # one unit more, and none to remember: what is done to edged.socket is done to this one
    for done, state in (("stop", "inactive"), ("start", "active"), ("restart", "active")):
        old.sh(f"systemctl reset-failed edged; systemctl {done} edged.socket edged")
        assert old.show("ActiveState", "edged-https.socket") == state, done
        assert old.show("ActiveState", "edged.service") == state, done
    assert status_of(key, trust=trust) == 200


def test_what_people_type_day_by_day_works(old: Machine) -> None:
    """The commands of the table that need nothing to be put in, as they stand there."""
    table = PAGE.read_text().partition("## Day by day")[2].partition("## Update")[0]
    for command in (
        "edged check",
        "sudo systemctl reload edged",
        "edged status",
        "systemctl status edged",
        "journalctl -u edged",
        "sudo edged doctor",
        "sudo edged report",
        "edged discover",
    ):
        assert f"`{command}`" in table, command
        assert old.sh(f"{SUDO}{command}") or command.endswith("reload edged"), command
    assert old.sh("ls /root/edged-report-*.tar.gz")


def test_new_box_takes_the_place_of_the_old_one(
    old: Machine, packages: Packages, tmp_path: Path
) -> None:
    """Keys, the CA that clients trust, settings and stored responses come along."""
    key = old.sh("edged key add anna").splitlines()[-1]
    old.until("edged key list | grep -q anna")
    with client(key) as ours:
        body = {"model": "edge-guide", "input": "What is edged?", "max_output_tokens": 16}
        made = ours.post(f"{URL}/v1/responses", json=body).raise_for_status().json()
        ca = ours.get(f"{URL}/ca.crt").text
    state = Path("/var/lib/edged")
    for large in (cuda.folder_in(state), state / "models"):
        old.sh(f"mkdir -p {large}; touch {large}/left-behind")
    old.sh(documented(MOVING, 0))
    assert "left-behind" not in old.sh("tar -tzf /root/edged-backup.tgz")
    assert old.sh("stat -c %a /root/edged-backup.tgz") == "600"
    shutil.copy(old.path("/root/edged-backup.tgz"), tmp_path)
    # the old one is off the network
    subprocess.run(["ip", "link", "delete", "ve-edgedold"], check=True)
    with booted(RELEASES[-1], name="edgednew", network="veth") as new:
        install(new, packages)
        new.push(tiny("plain"), "/srv/models")  # not in the backup, as the page says
        new.push(tmp_path / "edged-backup.tgz", "/root")
        said = new.sh(documented(MOVING, 1))
        assert "first key" not in said, "the one of this installation is good for nothing"
        trust = ssl.create_default_context(cadata=ca)
        with client(key, verify=trust) as ours:
            there = ours.get(f"{HTTPS_URL}/v1/responses/{made['id']}").raise_for_status().json()
            assert there["output"] == made["output"]
            assert ours.get(f"{URL}/ca.crt").text == ca
        sums = new.sh("edged tls show")
        assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(ca)).hexdigest() in sums
        assert "edgednew" in sums
        assert "edgedold" not in sums, "its own name, not that of the old one"
        # the rights that the installation gave are there again
        shown = new.sh("stat -c '%a %U:%G' /etc/edged/keys.toml /var/lib/edged/tls/ca.key")
        assert shown.splitlines() == ["640 root:edged", "600 edged:edged"]
