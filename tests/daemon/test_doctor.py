"""`edged doctor`, `report` and `discover` as their users run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from zeroconf import ServiceInfo, Zeroconf

from edged.cli.discover import browse
from tests.daemon.appliance import PATIENCE_S, Appliance, appliance, needs_engine

Ran = subprocess.CompletedProcess[str]


def edged(box: Appliance, *arguments: str) -> Ran:
    return subprocess.run(
        [
            *(sys.executable, "-m", "edged", *arguments),
            *("--config", str(box.config), "--socket", str(box.admin_socket)),
        ],
        env=os.environ | {"NO_COLOR": "1", "STATE_DIRECTORY": str(box.folder / "state")},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        cwd=box.folder,
    )


@needs_engine
async def test_doctor_asks_for_real_and_says_what_clients_need(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a") as box:
        ran = edged(box, "doctor", "--json")
        findings = json.loads(ran.stdout)
        bad = [each for each in findings if each["level"] == "bad"]
        assert (ran.returncode, bad) == (0, [])
        answer = next(each for each in findings if each["about"] == "answer")
        assert answer["text"].startswith("a said ")
        assert {"daemon", "keys", "TLS", "disk", "clock", "address", "model a"} <= {
            each["about"] for each in findings
        }
        assert all(each["mend"] for each in findings if each["level"] == "bad")
        text = edged(box, "doctor").stdout
        assert f"(http://127.0.0.1:{box.port}/v1, with any key)" in text, "no other box reaches it"
        assert "from openai import OpenAI" in text
        (tmp_path / "keys.toml").write_text("[keys.")
        ran = edged(box, "doctor", "--json")
        assert ran.returncode == 1
        assert "keys.toml" in json.dumps(json.loads(ran.stdout))


def test_doctor_without_a_daemon_says_where_to_look(tmp_path: Path) -> None:
    box = Appliance(tmp_path)
    box.write()
    ran = edged(box, "doctor", "--json")
    assert ran.returncode == 1
    first = json.loads(ran.stdout)[0]
    assert (first["level"], first["about"]) == ("bad", "daemon")
    assert "journalctl" in first["mend"]


async def test_report_has_everything_but_secrets(tmp_path: Path) -> None:
    async with appliance(tmp_path) as box:
        secret = "sk-edged-" + "abcdefghijklmnop"
        box.save(box.toml() + f"# the key is {secret}\n")
        ran = edged(box, "report", "-o", "bundle.tgz")
        assert ran.returncode == 0, ran.stderr
        bundle = tmp_path / "bundle.tgz"
        assert bundle.stat().st_mode & 0o777 == 0o600
        with tarfile.open(bundle) as archive:
            parts = {
                Path(each.name).name: (archive.extractfile(each) or sys.exit()).read().decode()
                for each in archive.getmembers()
            }
        assert {"about.json", "doctor.json", "status.json", "models.toml", "log.txt"} <= set(parts)
        assert "daemon.serving" in parts["log.txt"]
        assert "the key is sk-…" in parts["models.toml"]
        assert secret not in "".join(parts.values())
        assert edged(box, "report", "-o", "bundle.tgz").returncode == 1, "nothing is overwritten"


def _skip_without_multicast(name: str) -> None:
    probe = Zeroconf(interfaces=["127.0.0.1"])
    try:
        if probe.get_service_info("_http._tcp.local.", name, 10_000) is None:
            pytest.skip("multicast does not reach others on this loopback")
    finally:
        probe.close()


def test_discover_finds_what_says_that_it_speaks_openai() -> None:
    name = f"edged test {os.getpid()}"
    net = Zeroconf(interfaces=["127.0.0.1"])
    try:
        kind = "_openai._sub._http._tcp.local."
        info = ServiceInfo(
            kind,
            f"{name}.{kind}",
            parsed_addresses=["127.0.0.1"],
            port=8000,
            server="box.local.",
            properties={"path": "/v1", "auth": "bearer", "version": "1"},
        )
        proper = ServiceInfo(
            "_http._tcp.local.",
            f"{name}._http._tcp.local.",
            parsed_addresses=["127.0.0.1"],
            port=8000,
            server="box.local.",
            properties={"path": "/v1", "auth": "bearer", "version": "1"},
        )
        net.register_service(proper)
        net.register_service(info)
        _skip_without_multicast(proper.name)
        found = [each for each in browse(4, "127.0.0.1") if each["name"] == name]
        assert [each["url"] for each in found] == ["http://127.0.0.1:8000/v1"]
        assert found[0]["auth"] == "bearer"
    finally:
        net.close()
