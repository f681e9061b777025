"""The life of an installed box, in order: each test goes on where the one before ended."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import openai
import pytest

from tests.appliance.conftest import install
from tests.appliance.machine import GUEST_IP, PATIENCE_S, Machine

URL = f"http://{GUEST_IP}:8000"
MODEL = "edge-guide"
CONFIG = "/etc/edged/models.toml"


@pytest.fixture(scope="module")
def facts(machine: Machine) -> dict[str, str]:
    """What the tests of one machine tell each other: the key, for one."""
    return {"release": machine.sh(". /etc/os-release; echo $VERSION_CODENAME")}


def ask(key: str, url: str = URL, client: httpx.Client | None = None) -> str:
    """Ask as a user does, with OpenAI's SDK, from the other side of the wire."""
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S, http_client=client
    ) as sdk:
        answer = sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "What is edged?"}], max_tokens=16
        )
    return answer.choices[0].message.content or ""


def status_of(key: str, path: str = "/v1/models") -> int:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(URL + path, headers=headers, timeout=PATIENCE_S, trust_env=False).status_code


class Load(threading.Thread):
    """Asks without a pause until it is ended; `seen` counts what came back."""

    def __init__(self, key: str) -> None:
        super().__init__(daemon=True)
        self.seen: Counter[str] = Counter()
        self._key = key
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            try:
                # a new connection each time: one that is refused must be noticed
                self.seen[str(status_of(self._key))] += 1
            except httpx.HTTPError as error:
                self.seen[type(error).__name__] += 1

    def until(self, number: int) -> None:
        """Wait until so many more answers have come."""
        wanted, end = self.seen.total() + number, time.monotonic() + PATIENCE_S
        while self.seen.total() < wanted:
            assert time.monotonic() < end, self.seen
            time.sleep(0.02)

    def end(self) -> Counter[str]:
        self._over.set()
        self.join(PATIENCE_S)
        return self.seen


def test_offline_installation_answers_over_the_wire_with_the_first_key(
    machine: Machine, packages: list[Path], facts: dict[str, str]
) -> None:
    seconds = install(machine, packages[0])
    began = time.monotonic()
    machine.until("systemctl is-active edged", limit_s=30)
    facts["key"] = machine.sh("edged key show-first")
    assert ask(facts["key"])
    assert time.monotonic() - began < 30
    print(f"\n{facts['release']}: installed in {seconds:.1f} s")
    assert "shown already" in machine.sh("edged key show-first", ok=False)
    assert machine.sh("stat -c '%a %U:%G' /etc/edged/keys.toml") == "640 root:edged"


def test_unit_is_as_closed_as_promised(machine: Machine) -> None:
    machine.sh("systemd-analyze security --threshold=15 edged.service")
    problems = machine.sh("systemd-analyze verify edged.service edged.socket 2>&1", ok=False)
    assert [line for line in problems.splitlines() if "edged" in line and "man " not in line] == []


def test_who_has_no_key_gets_nothing(machine: Machine, facts: dict[str, str]) -> None:
    assert status_of("sk-wrong") == 401
    assert status_of("sk-wrong", "/health") == 200
    with pytest.raises(openai.AuthenticationError):
        ask("sk-wrong")
    limited = machine.sh("edged key add small --models other --rpm 2 --expires 1h")
    limited = limited.splitlines()[-1]
    machine.until(f"grep -q small {CONFIG.replace('models', 'keys')}")
    _until(lambda: status_of(limited) == 200)
    with pytest.raises(openai.PermissionDeniedError):
        ask(limited)
    machine.sh("edged key revoke small")
    _until(lambda: status_of(limited) == 401)
    log = machine.journal()
    assert limited not in log
    assert facts["key"] not in log


def test_saved_file_applies_by_itself_and_reload_tells_the_truth(machine: Machine) -> None:
    machine.sh(f'sed -i \'s/^load = .*/load = "startup"\\naliases = ["guide"]/\' {CONFIG}')
    machine.until("edged models --json | grep -q '\"guide\"'")
    assert machine.run("systemctl", "reload", "edged").returncode == 0
    machine.sh(f"cp {CONFIG} /root/good; echo '[models.broken' >> {CONFIG}")
    assert machine.run("systemctl", "reload", "edged", ok=False).returncode != 0
    assert "NOT applied" in machine.show("StatusText")
    machine.sh(f"cat /root/good > {CONFIG}")
    assert machine.run("systemctl", "reload", "edged").returncode == 0
    assert machine.show("ActiveState") == "active"


def test_journal_knows_the_fields(machine: Machine, facts: dict[str, str]) -> None:
    ask(facts["key"])
    found = machine.sh(
        f"journalctl -u edged EDGED_MODEL={MODEL} EDGED_EVENT=request.done -o json -n 1"
    )
    entry = json.loads(found)
    assert entry["EDGED_KEY"] == "admin"
    assert entry["EDGED_REQUEST_ID"]
    assert entry["PRIORITY"] == "6"


def test_tls_of_its_own_ca_beside_http(
    machine: Machine, facts: dict[str, str], tmp_path: Path
) -> None:
    machine.sh(f"printf '[server.tls]\\nmode = \"self-signed\"\\n' >> {CONFIG}")
    assert machine.run("systemctl", "reload", "edged").returncode == 0
    ca = tmp_path / "ca.crt"
    ca.write_bytes(httpx.get(f"{URL}/ca.crt", timeout=PATIENCE_S, trust_env=False).content)
    trust = ssl.create_default_context(cafile=str(ca))
    with httpx.Client(verify=trust, trust_env=False, timeout=PATIENCE_S) as client:
        assert ask(facts["key"], f"https://{GUEST_IP}:8443", client)
    with (
        httpx.Client(trust_env=False, timeout=PATIENCE_S) as stranger,
        pytest.raises(httpx.ConnectError, match="certificate verify failed"),
    ):
        stranger.get(f"https://{GUEST_IP}:8443/health")


def test_doctor_is_green(machine: Machine) -> None:
    found = machine.run("edged", "doctor", ok=False)
    assert found.returncode == 0, found.stdout
    assert "https://" in found.stdout


def test_restart_and_upgrade_refuse_nobody_and_keep_what_was_edited(
    machine: Machine, packages: list[Path], facts: dict[str, str]
) -> None:
    load = Load(facts["key"])
    load.start()
    load.until(5)
    machine.sh("systemctl restart edged")
    load.until(5)
    install(machine, packages[1])
    load.until(5)
    machine.sh("systemctl is-active edged")
    load.until(5)
    seen = load.end()
    print(f"\n{facts['release']}: restart and upgrade, {seen.total()} requests, {dict(seen)}")
    assert set(seen) == {"200"}, seen
    assert "test2" in machine.sh("dpkg-query -W edged")
    assert "aliases" in machine.sh(f"cat {CONFIG}")
    assert ask(facts["key"])
    assert "shown already" in machine.sh("edged key show-first", ok=False), "no second first key"


def test_frozen_loop_is_killed_and_started_again(machine: Machine) -> None:
    # TimeoutStopSec: with cgroup v1, systemd in a container does not learn that a group is empty
    machine.sh(
        "mkdir -p /run/systemd/system/edged.service.d;"
        "printf '[Service]\\nWatchdogSec=5\\nTimeoutStopSec=5\\n'"
        " > /run/systemd/system/edged.service.d/t.conf;"
        "systemctl daemon-reload; systemctl restart edged"
    )
    before = machine.show("MainPID")
    machine.sh(f"kill -STOP {before}")
    machine.until(
        "test $(systemctl show -P NRestarts edged) -ge 1 && systemctl is-active edged && "
        f"test $(systemctl show -P MainPID edged) != {before}"
    )
    assert "watchdog" in machine.sh("journalctl -u edged --no-pager").lower()
    machine.sh("rm -r /run/systemd/system/edged.service.d; systemctl daemon-reload")


def test_worker_killed_for_memory_costs_its_model_only(
    machine: Machine, facts: dict[str, str]
) -> None:
    ask(facts["key"])
    daemon = machine.show("MainPID")
    worker = machine.sh(
        "edged status --json | sed -n 's/ *\"pid\": \\([0-9]*\\).*/\\1/p' | tail -1"
    )
    assert worker != daemon
    machine.sh(f"kill -KILL {worker}")  # what the kernel's OOM killer does, and no more
    machine.until("edged status --json | grep -q '\"restarts\": 1'")
    assert machine.show("MainPID") == daemon
    assert ask(facts["key"])


def test_downgrade_works(machine: Machine, packages: list[Path], facts: dict[str, str]) -> None:
    machine.sh(f"apt-get install -y --allow-downgrades /root/{packages[0].name}", limit_s=300)
    machine.until("systemctl is-active edged")
    assert ask(facts["key"])


def test_remove_keeps_what_is_yours_and_purge_nothing(machine: Machine) -> None:
    machine.sh("apt-get remove -y edged", limit_s=120)
    assert machine.run("systemctl", "is-active", "edged.socket", ok=False).stdout != "active\n"
    kept = f"{CONFIG} /etc/edged/keys.toml /var/lib/edged/tls/ca.key"
    machine.sh(f"ls {kept}")
    machine.sh("apt-get purge -y edged", limit_s=120)
    left = machine.sh(
        "find / -xdev \\( -name '*edged*' \\) ! -path '/proc/*' ! -path '/root/*' "
        "! -path '/run/*' ! -path '/sys/*' ! -path '/var/log/*' ! -path '/var/cache/apt/*' "
        "! -path '/tmp/*'"
    )
    assert left == ""
    assert machine.sh("getent passwd edged").startswith("edged:"), "a number is not given away"


def _until(condition: object) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.1)
