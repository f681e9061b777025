"""What `edged doctor` looks at: each check gives findings, each finding says what mends it.

Nothing is changed here, and nothing leaves the box.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import msgspec
from msgspec import Struct

from edged import auth
from edged.cli import tls as tls_command
from edged.config import Config, Listen
from edged.config.values import format_bytes
from edged.daemon import certificates
from edged.errors import ConfigError

Level = Literal["ok", "note", "bad"]

_DAY_S = 86400
_LEAST_DISK = 1 << 30
_LEAST_MEMORY = 256 << 20
_QUICK_S = 5.0
_ANSWER_S = 180.0  # a model may have to be loaded first
_SOON_DAYS = 14
_AVAHI = Path("/run/avahi-daemon/socket")
_AVAHI_FILE = Path("/etc/avahi/services/edged.service")
_OLDEST_NOW = 1_790_000_000  # this code was written after that: a clock before it is wrong
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where a knock at every address goes


class Finding(Struct, frozen=True):
    """One thing that was looked at; `mend` is a command or a step, empty when all is well."""

    level: Level
    about: str
    text: str
    mend: str = ""


class Box(Struct):
    """What the checks look at. `status` is None where the daemon does not answer."""

    config: Config
    path: Path
    state: Path
    status: dict[str, Any] | None
    daemon: httpx.Client


def everything(box: Box) -> Iterator[Finding]:
    """Look at everything, quick things first."""
    yield from _keys(box)
    yield from _tls(box)
    yield from _disk(box)
    yield from _clock()
    yield from _name()
    if box.status is None:
        return
    yield from _reach(box, box.status)
    yield from _firewall(box.status)
    yield from _discovery(box, box.status)
    yield from _hardware(box.status)
    yield from _models(box.status)
    yield from _answer(box)


def _keys(box: Box) -> Iterator[Finding]:
    path = auth.path_beside(box.path)
    try:
        keys = auth.load(path).keys
    except ConfigError as error:
        yield Finding("bad", "keys", error.message, f"mend {path}, or run this as root")
        return
    try:
        is_unseen = auth.unseen(path) is not None
    except PermissionError:  # it is there, and root's
        is_unseen = True
    if is_unseen:
        yield Finding(
            "note", "keys", "nobody has seen the first key yet", "sudo edged key show-first"
        )
    ended = [key.name for key in keys if key.expires is not None and key.expires < time.time()]
    if ended:
        mend = f"edged key revoke {ended[0]}, or edged key rotate {ended[0]} --expires 90d"
        yield Finding("note", "keys", f"expired: {', '.join(ended)}", mend)
    if box.config.server.auth == "none":
        yield Finding(
            "note", "keys", 'auth = "none": everybody in `allow` may use this box',
            'edged key add NAME, then auth = "auto" in models.toml',
        )  # fmt: skip
    elif keys:
        yield Finding("ok", "keys", f"{len(keys)}: {', '.join(key.name for key in keys[:10])}")
    else:
        yield Finding("note", "keys", "none: only this box may ask", "edged key add NAME")


def _tls(box: Box) -> Iterator[Finding]:
    path = tls_command.leaf(box.config, str(box.path))
    if path is None:
        yield Finding(
            "note", "TLS", "off: keys and prompts cross the network in the clear",
            '[server.tls] mode = "self-signed" in models.toml',
        )  # fmt: skip
        return
    try:
        found = certificates.read(path)
    except (OSError, ValueError) as error:
        yield Finding("bad", "TLS", f"{path}: {error}", "sudo edged tls init")
        return
    days = int((found.ends - time.time()) // _DAY_S)
    text = f"{path.name} for {', '.join(found.names[:8])}, {days} days left"
    if days < 0:
        yield Finding("bad", "TLS", f"{path} has ended", "put a new one there, or edged tls init")
    elif days < _SOON_DAYS:
        yield Finding("note", "TLS", text, "renew it now; the daemon loads it by itself")
    else:
        yield Finding("ok", "TLS", text)


def _disk(box: Box) -> Iterator[Finding]:
    folder = next(each for each in (box.state, *box.state.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    text = f"{format_bytes(free)} free at {folder}"
    if free < _LEAST_DISK:
        yield Finding("bad", "disk", text, f"du -xh {folder} | sort -h | tail")
    else:
        yield Finding("ok", "disk", text)


def _clock() -> Iterator[Finding]:
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if time.time() < _OLDEST_NOW:
        yield Finding("bad", "clock", f"says {now}, which is past", "timedatectl set-ntp true")
        return
    synchronised = _said(["timedatectl", "show", "-P", "NTPSynchronized"])
    if synchronised == "no":
        yield Finding("note", "clock", f"{now}, not synchronised", "timedatectl set-ntp true")
    else:
        yield Finding("ok", "clock", now)


def _name() -> Iterator[Finding]:
    host = socket.gethostname()
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        mend = f"echo 127.0.1.1 {host} | sudo tee -a /etc/hosts"
        yield Finding("note", "name", f"{host} is not known here", mend)
        return
    yield Finding("ok", "name", f"{host}; clients may know it as {host.partition('.')[0]}.local")


def served(status: dict[str, Any]) -> list[Listen]:
    """Return the TCP addresses at which the daemon says that it listens."""
    found = []
    for shown in status["listen"]:
        if not shown.startswith("unix:"):
            address, _, tls = shown.partition(" ")
            host, _, port = address.rpartition(":")
            found.append(Listen("tcp", host=host.strip("[]"), port=int(port), tls=bool(tls)))
    return found


def _is_reachable(status: dict[str, Any]) -> bool:
    return any(not each.loopback for each in served(status))


def _reach(box: Box, status: dict[str, Any]) -> Iterator[Finding]:
    """Knock at every address as a client does."""
    for each in served(status):
        shown = f"{each}{' (TLS)' if each.tls else ''}"
        here = msgspec.structs.replace(each, host=_ANY.get(each.host, each.host))
        url = f"{'https' if each.tls else 'http'}://{here}/health"
        context = ssl.create_default_context()
        try:
            if box.config.server.tls.mode == "self-signed" and each.tls:
                context.load_verify_locations(box.state / "tls" / "ca.crt")
            elif each.tls:  # a name that the certificate has is not known here
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            httpx.get(url, verify=context, timeout=_QUICK_S, trust_env=False).raise_for_status()
        except (httpx.HTTPError, OSError) as error:
            yield Finding("bad", "address", f"{shown}: {error}", "journalctl -u edged -n 50")
        else:
            yield Finding("ok", "address", shown)
    if not _is_reachable(status):
        yield Finding(
            "note", "address", "no other box can reach this one",
            'edged key add NAME, then listen = ["0.0.0.0:8000"] in models.toml',
        )  # fmt: skip


def _firewall(status: dict[str, Any]) -> Iterator[Finding]:
    ports = sorted({each.port for each in served(status) if not each.loopback})
    if not ports:
        return  # nobody is to come in
    if "Status: active" in _said(["ufw", "status"]):
        mend = "; ".join(f"sudo ufw allow from 192.168.0.0/16 to any port {p}" for p in ports)
        yield Finding("note", "firewall", "ufw is on; its rules decide who gets here", mend)
    elif _said(["firewall-cmd", "--state"]) == "running":
        mend = "; ".join(f"sudo firewall-cmd --permanent --add-port={p}/tcp" for p in ports)
        mend += "; sudo firewall-cmd --reload"
        yield Finding("note", "firewall", "firewalld is on; its zones decide", mend)
    elif chain := dropping_chain(_said(["nft", "list", "ruleset"])):
        wanted = ", ".join(str(port) for port in ports)
        mend = f"sudo nft 'add rule {chain} tcp dport {{ {wanted} }} accept'"
        yield Finding("note", "firewall", "nftables drops what no rule accepts", mend)
    else:
        yield Finding("ok", "firewall", "none of this box's own was seen")


def dropping_chain(ruleset: str) -> str | None:
    """Return `inet filter input`: the chain for what comes in that drops what no rule accepts."""
    table = chain = ""
    for line in ruleset.splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
        elif words[:1] == ["chain"]:
            chain = words[1]
        elif "hook input" in line and "policy drop" in line:
            return f"{table} {chain}"
    return None


def _discovery(box: Box, status: dict[str, Any]) -> Iterator[Finding]:
    if not _is_reachable(status):
        return
    is_wanted = box.config.server.announce and box.config.server.auth != "none"
    if is_wanted and _AVAHI.exists() and not _AVAHI_FILE.exists():
        yield Finding(
            "note", "discovery", "avahi runs here and does not announce this box",
            f"sudo cp /usr/share/doc/edged/examples/avahi.service {_AVAHI_FILE}",
        )  # fmt: skip
    else:
        yield Finding("ok", "discovery", "announced" if is_wanted else "not announced")


def _hardware(status: dict[str, Any]) -> Iterator[Finding]:
    hardware = status["hardware"]
    memory = hardware["memory"]
    free = memory["available_bytes"]
    text = f"{format_bytes(free)} of {format_bytes(memory['limit_bytes'])} free at start"
    if free < _LEAST_MEMORY:
        yield Finding("bad", "memory", text, "a smaller model or context in models.toml")
    else:
        yield Finding("ok", "memory", text)
    versions = {k: v for k, v in hardware["engines"].items() if not k.endswith("_python")}
    engines = [f"{k} {v}" for k, v in versions.items() if v]
    if engines:
        yield Finding("ok", "engines", ", ".join(engines))
    else:
        yield Finding("bad", "engines", "none is installed", "apt-get install --reinstall edged")
    gpus = [gpu["name"] for gpu in hardware["gpus"]]
    has_node = any(Path("/dev/dri").glob("renderD*")) if Path("/dev/dri").is_dir() else False
    if gpus and versions.get("lmdeploy") is None:
        text = f"{', '.join(gpus)}; LMDeploy, which computes on it, is not installed"
        yield Finding("note", "GPU", text, "edged setup-cuda")
    elif gpus:
        yield Finding("ok", "GPU", ", ".join(gpus))
    elif has_node:
        mend = "see /usr/share/doc/edged/examples/vulkan.conf, and install its Vulkan driver"
        yield Finding("note", "GPU", "there is one that edged does not see", mend)
    else:
        yield Finding("ok", "GPU", "none; models run on the CPU")
    for note in hardware["notes"]:
        yield Finding("note", "hardware", note)


def _models(status: dict[str, Any]) -> Iterator[Finding]:
    if problem := status["config"]["problem"]:
        yield Finding("bad", "models.toml", f"is not in force: {problem}", "edged check")
    if not status["models"]:
        yield Finding("note", "models", "none", "add [models.NAME] to models.toml")
    for model in status["models"]:
        about = f"model {model['name']}"
        if model["error"]:
            yield Finding("bad", about, model["error"], "edged check; journalctl -u edged -n 50")
        else:
            yield Finding("ok", about, f"{model['state']} on {model['engine'] or 'none'}")


def _answer(box: Box) -> Iterator[Finding]:
    """Ask a model for real, over the admin socket and through everything behind it."""
    try:
        listed = box.daemon.get("/v1/models").raise_for_status().json()["data"]
        name = next((m["id"] for m in listed if "chat" in m["edged"]["capabilities"]), None)
        if name is None:
            return
        body = {
            "model": name,
            "messages": [{"role": "user", "content": "Say hello."}],
            "max_tokens": 8,
        }
        began = time.monotonic()
        answer = box.daemon.post("/v1/chat/completions", json=body, timeout=_ANSWER_S)
        seconds = time.monotonic() - began
        said = answer.raise_for_status().json()["choices"][0]["message"]["content"]
    except (httpx.HTTPError, KeyError, ValueError) as error:
        yield Finding("bad", "answer", str(error), "journalctl -u edged -n 50")
        return
    yield Finding("ok", "answer", f"{name} said {said[:40]!r} after {seconds:.1f} s")


def _said(command: list[str]) -> str:
    """Return what a tool of the system prints; nothing where it is not there or not for us."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    program = shutil.which(command[0], path=path)
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, check=False, timeout=_QUICK_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
