"""The life of an installed box, in order: each test goes on where the one before ended."""

from __future__ import annotations

import json
import re
import ssl
import time
from pathlib import Path

import httpx
import openai
import pytest

from edged.cli.discover import browse
from tests.appliance.clients import HTTPS_URL, MODEL, URL, Load, ask, status_of
from tests.appliance.conftest import IN_CI, Packages, install
from tests.appliance.machine import HOST_IP, PATIENCE_S, Machine

CONFIG = "/etc/edged/models.toml"


@pytest.fixture(scope="module")
def facts(machine: Machine) -> dict[str, str]:
    """What the tests of one machine tell each other: the key, for one."""
    return {"release": machine.sh(". /etc/os-release; echo $VERSION_CODENAME")}


@pytest.mark.in_ci
def test_offline_installation_answers_over_the_wire_with_the_first_key(
    machine: Machine, packages: Packages, facts: dict[str, str]
) -> None:
    seconds = install(machine, packages.first)
    began = time.monotonic()
    machine.until("systemctl is-active edged")
    active_s = time.monotonic() - began
    machine.hurry()  # after the one that is timed
    facts["key"] = machine.sh("edged key show-first")
    assert ask(facts["key"])
    answered_s = time.monotonic() - began
    assert IN_CI or answered_s < 30, "a box's own time, not that of a CI machine"
    print(
        f"\n{facts['release']}: installed in {seconds:.1f} s, active after {active_s:.1f} s more, "
        f"answered after {answered_s:.1f} s"
    )
    assert "shown already" in machine.sh("edged key show-first", ok=False)


@pytest.mark.in_ci
def test_user_files_and_folders_are_as_the_package_says(machine: Machine) -> None:
    assert {"edged", "render", "video"} <= set(machine.sh("id -nG edged").split())
    shown = machine.sh(
        "stat -c '%a %U:%G %n' /etc/edged/keys.toml /var/lib/edged /var/cache/edged "
        "/var/lib/edged/tls/ca.key /run/edged/admin.sock"
    )
    assert shown.splitlines() == [
        "640 root:edged /etc/edged/keys.toml",
        "750 edged:edged /var/lib/edged",
        "750 edged:edged /var/cache/edged",
        "600 edged:edged /var/lib/edged/tls/ca.key",
        "660 edged:edged /run/edged/admin.sock",
    ]
    assert machine.sh("dpkg --verify edged") == ""
    machine.sh("find /usr/lib/edged -name __pycache__ | grep -q edged", ok=True)


@pytest.mark.in_ci
def test_unit_is_as_closed_as_promised(machine: Machine) -> None:
    found = machine.sh("systemd-analyze security --no-pager --threshold=15 edged.service")
    print(f"\n{found.splitlines()[-1]}")
    problems = machine.sh("systemd-analyze verify edged.service edged.socket 2>&1", ok=False)
    assert [line for line in problems.splitlines() if "edged" in line and "man " not in line] == []


@pytest.mark.in_ci
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


@pytest.mark.in_ci
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


@pytest.mark.in_ci
def test_journal_knows_the_fields(machine: Machine, facts: dict[str, str]) -> None:
    ask(facts["key"])
    found = machine.sh(
        f"journalctl -u edged EDGED_MODEL={MODEL} EDGED_EVENT=request.done -o json -n 1"
    )
    entry = json.loads(found)
    assert entry["EDGED_KEY"] == "admin"
    assert entry["EDGED_REQUEST_ID"]
    assert entry["PRIORITY"] == "6"


@pytest.mark.in_ci
def test_tls_of_its_own_ca_beside_http(
    machine: Machine, facts: dict[str, str], tmp_path: Path
) -> None:
    machine.sh(f"printf '[server.tls]\\nmode = \"self-signed\"\\n' >> {CONFIG}")
    assert machine.run("systemctl", "reload", "edged").returncode == 0
    ca = tmp_path / "ca.crt"
    ca.write_bytes(httpx.get(f"{URL}/ca.crt", timeout=PATIENCE_S, trust_env=False).content)
    trust = ssl.create_default_context(cafile=str(ca))
    with httpx.Client(verify=trust, trust_env=False, timeout=PATIENCE_S) as client:
        assert ask(facts["key"], HTTPS_URL, client)
    with (
        httpx.Client(trust_env=False, timeout=PATIENCE_S) as stranger,
        pytest.raises(httpx.ConnectError, match="certificate verify failed"),
    ):
        stranger.get(f"{HTTPS_URL}/health")


def test_others_find_it(machine: Machine) -> None:
    """The daemon announces itself on the wire, and `edged discover` on this side hears it."""
    urls = {f"{URL}/v1", f"{HTTPS_URL}/v1"}
    _until(lambda: urls <= {each["url"] for each in browse(3, HOST_IP)})
    machine.sh(f"sed -i 's/^\\[server\\]$/[server]\\nannounce = false/' {CONFIG}")
    assert machine.run("systemctl", "reload", "edged").returncode == 0
    _until(lambda: not urls & {each["url"] for each in browse(3, HOST_IP)})
    machine.sh(f"sed -i '/^announce = false$/d' {CONFIG}; systemctl reload edged")


@pytest.mark.in_ci
def test_doctor_is_green(machine: Machine) -> None:
    found = machine.run("edged", "doctor", ok=False)
    assert found.returncode == 0, found.stdout
    assert "https://" in found.stdout


@pytest.mark.in_ci
def test_restart_and_upgrade_refuse_nobody_and_keep_what_was_edited(
    machine: Machine, packages: Packages, facts: dict[str, str]
) -> None:
    load = Load(facts["key"])
    load.start()
    load.until(5)
    machine.sh("systemctl restart edged")
    load.until(5)
    compiled = byte_code(machine, "litestar"), byte_code(machine, "edged")
    seconds = install(machine, packages.second)
    load.until(5)
    machine.sh("systemctl is-active edged")
    load.until(5)
    seen = load.end()
    print(
        f"\n{facts['release']}: restart, and upgrade in {seconds:.1f} s; {seen.total()} requests, "
        f"{dict(seen)}"
    )
    after = byte_code(machine, "litestar"), byte_code(machine, "edged")
    assert after[0] == compiled[0], "that of libraries which did not change is kept"
    assert after[1] != compiled[1]
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
    """A limit that a second model's cache does not fit into, and that its plan does not know."""
    ask(facts["key"])
    machine.sh(
        f"printf '[models.big]\\ngguf = \"builtin:edge-guide\"\\nparallel = 64\\n' >> {CONFIG}; "
        "systemctl reload edged"
    )
    daemon, before = machine.show("MainPID"), worker_of(machine, MODEL)
    group = machine.sh(
        "ls -d /sys/fs/cgroup/memory/system.slice/edged.service "
        "/sys/fs/cgroup/system.slice/edged.service 2>/dev/null | head -1"
    )
    used = machine.sh(
        f"sed -n 's/^total_rss //p; s/^anon //p' {group}/memory.stat | head -1", ok=False
    )
    if not used.isdecimal():
        pytest.skip("control groups do not count memory here")
    limit = int(used) + (200 << 20)
    machine.sh(f"systemctl set-property --runtime edged.service MemoryMax={limit}")
    refused = machine.run("edged", "load", "big", ok=False)
    assert refused.returncode != 0, refused.stdout
    killed = machine.sh(
        f"cat {group}/memory.oom_control {group}/memory.events 2>/dev/null", ok=False
    )
    assert re.search(r"^oom_kill [1-9]", killed, re.MULTILINE), (
        killed,
        machine.journal("-n", "50"),
    )
    assert machine.show("MainPID") == daemon, "the daemon lives"
    assert worker_of(machine, MODEL) == before, "and so does the other model's worker"
    assert ask(facts["key"])
    print(f"\n{facts['release']}: {' '.join(killed.split())}: {refused.stdout.strip()}")
    machine.sh("systemctl set-property --runtime edged.service MemoryMax=infinity")
    machine.sh("systemctl reload edged; edged load big")  # five bad starts wait for a reload
    machine.sh(f"sed -i '/^\\[models.big\\]/,$d' {CONFIG}; systemctl reload edged")


def test_socket_without_keys_serves_nobody_and_says_what_to_do(machine: Machine) -> None:
    machine.sh("mv /etc/edged/keys.toml /root/; systemctl reset-failed edged")
    assert machine.run("systemctl", "restart", "edged", ok=False).returncode != 0
    assert machine.show("ExecMainStatus") == "78"
    assert "edged key add NAME" in machine.journal("-n", "20")
    machine.sh(
        "mv /root/keys.toml /etc/edged/; systemctl reset-failed edged edged.socket; "
        "systemctl restart edged.socket edged; systemctl is-active edged"
    )


@pytest.mark.parametrize("name", ["vulkan", "cuda"])
def test_service_starts_with_the_devices_of_gpus_open(
    machine: Machine, facts: dict[str, str], name: str
) -> None:
    """No GPU is here; that absent devices are no fault is what every other box relies on."""
    folder = "/etc/systemd/system/edged.service.d"
    machine.sh(
        f"install -D -m 644 /usr/share/doc/edged/examples/{name}.conf {folder}/{name}.conf; "
        "systemctl daemon-reload; systemctl reset-failed edged; systemctl restart edged"
    )
    assert "char-nvidia rw" in machine.show("DeviceAllow")
    assert machine.show("PrivateDevices") == "no"
    assert ask(facts["key"])
    score = machine.sh("systemd-analyze security --no-pager edged.service").splitlines()[-1]
    print(f"\n{name}.conf: {score}")
    machine.sh(f"rm -r {folder}; systemctl daemon-reload; systemctl restart edged")


def test_cuda_package_opens_the_unit_while_it_is_there(
    machine: Machine, packages: Packages
) -> None:
    machine.push(packages.cuda, "/root")
    machine.sh(f"systemctl reset-failed edged; dpkg -i /root/{packages.cuda.name}")
    assert "char-nvidia-uvm rw" in machine.show("DeviceAllow")
    machine.sh("systemctl is-active edged; systemctl reset-failed edged; dpkg --purge edged-cuda")
    assert "char-nvidia" not in machine.show("DeviceAllow")
    machine.sh("systemctl is-active edged")


def test_dpkg_asks_about_an_edited_file_and_both_answers_hold(
    machine: Machine, packages: Packages, facts: dict[str, str]
) -> None:
    for package in (packages.asking, packages.second):
        machine.push(package, "/root")
    edited = machine.sh(f"cat {CONFIG}")
    kept = machine.run("dpkg", "-i", f"/root/{packages.asking.name}", stdin="N\n", limit_s=300)
    assert f"Configuration file '{CONFIG}'" in kept.stdout
    assert machine.sh(f"cat {CONFIG}") == edited
    assert "what the next version says" in machine.sh(f"cat {CONFIG}.dpkg-dist")
    assert ask(facts["key"])
    # back, and this time the package's own is taken
    back = machine.run("dpkg", "-i", f"/root/{packages.second.name}", stdin="Y\n", limit_s=300)
    assert f"Configuration file '{CONFIG}'" in back.stdout
    assert machine.sh(f"cat {CONFIG}.dpkg-old") == edited
    assert 'aliases = ["guide"]' not in machine.sh(f"cat {CONFIG}")
    machine.until("systemctl is-active edged")
    assert ask(facts["key"])
    machine.sh(f"rm {CONFIG}.dpkg-*")


def test_downgrade_works(machine: Machine, packages: Packages, facts: dict[str, str]) -> None:
    machine.push(packages.first, "/root")
    machine.sh(f"apt-get install -y --allow-downgrades /root/{packages.first.name}", limit_s=300)
    machine.until("systemctl is-active edged")
    assert ask(facts["key"])


@pytest.mark.in_ci
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


def byte_code(machine: Machine, package: str) -> str:
    """Return when what of a package was compiled."""
    found = machine.sh(
        f"stat -c '%Y %i %n' /usr/lib/edged/site-packages/{package}/__pycache__/*.pyc"
    )
    assert found
    return found


def worker_of(machine: Machine, model: str) -> int:
    """Return the process of a model."""
    models = json.loads(machine.sh("edged status --json"))["models"]
    return int(next(each for each in models if each["name"] == model)["pid"])


def _until(condition: object) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.1)
