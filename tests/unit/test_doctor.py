"""What `edged doctor` concludes from the addresses that the daemon serves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from edged.cli import checks, doctor
from edged.cli.checks import Box
from edged.config import Config, Listen, Server, Tls
from edged.daemon import certificates

OWN = ("127.0.0.1", "::1", "192.168.7.5", "fd00::5")
UNIX = "unix:/run/edged/admin.sock"


def box(*listen: str, server: Server | None = None) -> Box:
    return Box(
        config=Config(server=server or Server()),
        path=Path("/etc/edged/models.toml"),
        state=Path("/var/lib/edged"),
        status={"listen": [*listen, UNIX]},
        daemon=httpx.Client(),
    )


def bases(text: str) -> set[str]:
    return set(re.findall(r"https?://\S+?/v1", text))


@pytest.fixture(autouse=True)
def _own_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "addresses", lambda: OWN)


SELF_SIGNED = Server(tls=Tls(mode="self-signed"))


@pytest.mark.parametrize(
    ("listen", "base"),
    [
        (["127.0.0.1:8000"], "http://127.0.0.1:8000/v1"),
        (["[::1]:8000"], "http://[::1]:8000/v1"),
        (["0.0.0.0:8000"], "http://192.168.7.5:8000/v1"),
        (["[::]:8001"], "http://192.168.7.5:8001/v1"),
        (["127.0.0.1:1", "192.168.7.5:2"], "http://192.168.7.5:2/v1"),
        (["0.0.0.0:8000", "0.0.0.0:8443 (TLS)"], "https://192.168.7.5:8443/v1"),
        (["0.0.0.0:8000", "127.0.0.1:8443 (TLS)"], "http://192.168.7.5:8000/v1"),
    ],
)
def test_clients_are_told_the_best_address_that_is_served(listen: list[str], base: str) -> None:
    assert bases(doctor.snippets(box(*listen))) == {base}


def test_box_without_ipv4_is_known_by_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "addresses", lambda: ("127.0.0.1", "::1", "fd00::5"))
    assert bases(doctor.snippets(box("[::]:8000"))) == {"http://[fd00::5]:8000/v1"}
    assert bases(doctor.snippets(box("0.0.0.0:8000"))) == {"http://127.0.0.1:8000/v1"}


def test_clients_get_the_ca_where_they_can_reach_it() -> None:
    both = doctor.snippets(box("0.0.0.0:8000", "0.0.0.0:8443 (TLS)", server=SELF_SIGNED))
    assert "curl -o ca.crt http://192.168.7.5:8000/ca.crt" in both
    closed = doctor.snippets(box("127.0.0.1:8000", "0.0.0.0:8443 (TLS)", server=SELF_SIGNED))
    assert "curl -o" not in closed
    assert "copy /var/lib/edged/tls/ca.crt" in closed
    foreign = doctor.snippets(box("0.0.0.0:8443 (TLS)", server=Server(tls=Tls(mode="files"))))
    assert "ca.crt" not in foreign


def test_what_only_this_box_reaches_is_called_so() -> None:
    here, there = doctor.snippets(box("127.0.0.1:8000")), doctor.snippets(box("0.0.0.0:8000"))
    assert "no other can reach it" in here
    assert "any key" in here
    assert "no other can reach it" not in there
    assert "edged key add NAME" in there
    assert "edged key add NAME" in doctor.snippets(box("127.0.0.1:8", server=Server(auth="keys")))
    assert "any key" in doctor.snippets(box("0.0.0.0:8000", server=Server(auth="none")))
    assert "no TCP address" in doctor.snippets(box())


def test_addresses_are_read_as_the_daemon_writes_them() -> None:
    status: dict[str, Any] = {"listen": ["0.0.0.0:8000", "[fe80::1%eth0]:8443 (TLS)", UNIX]}
    assert checks.served(status) == [
        Listen("tcp", "0.0.0.0", 8000),
        Listen("tcp", "fe80::1%eth0", 8443, tls=True),
    ]


def test_missing_ca_is_a_finding_and_no_end_of_the_doctor() -> None:
    found = [
        *checks._reach(
            box("127.0.0.1:9 (TLS)", server=SELF_SIGNED), {"listen": ["127.0.0.1:9 (TLS)"]}
        )
    ]
    assert [each.level for each in found if "TLS" in each.text] == ["bad"]


RULESET = """\
table ip nat {
\tchain prerouting {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t}
}
table inet filter {
\tchain incoming {
\t\ttype filter hook input priority filter; policy drop;
\t\tct state established,related accept
\t}

\tchain forward {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
"""


def test_chain_that_drops_what_comes_in_is_named() -> None:
    assert checks.dropping_chain(RULESET) == "inet filter incoming"
    open_but_for_forwarding = RULESET.replace(
        "input priority filter; policy drop", "input priority filter; policy accept"
    )
    assert checks.dropping_chain(open_but_for_forwarding) is None
    assert checks.dropping_chain("") is None
