"""`edged doctor` and `edged report`: is all well, what mends it, what clients and support need."""

from __future__ import annotations

import io
import ipaddress
import json
import os
import platform
import tarfile
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
import typer
from rich.console import Console
from rich.text import Text

from edged import __version__, auth, config
from edged.cli import checks, orders
from edged.cli.checks import Box, Finding
from edged.cli.client import ConfigFile, Json, fail
from edged.cli.tls import load_config, state_folder
from edged.config import Listen
from edged.daemon import certificates
from edged.errors import ConfigError
from edged.redaction import for_strangers

_STYLES = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "bad": ("BAD ", "bold red")}
_LOG_LINES = 500


def doctor(
    config_file: ConfigFile = None, socket: orders.Socket = None, json_: Json = False
) -> None:
    """Look at everything, say what mends it, and what to paste into a client.

    Exits with 1 if something does not work.
    """
    findings, box = _examine(config_file, socket)
    if json_:
        print(json.dumps(msgspec.to_builtins(findings), indent=2))
    else:
        console = Console()
        for finding in findings:
            word, style = _STYLES[finding.level]
            line = Text.assemble((word, style), f" {finding.about}: {finding.text}")
            console.print(line, highlight=False, soft_wrap=True)
            if finding.mend:
                console.print(Text(f"       → {finding.mend}"), highlight=False, soft_wrap=True)
        if box.status is not None:
            print(snippets(box))
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


def _examine(config_file: str | None, socket: str | None) -> tuple[list[Finding], Box]:
    path = config.find(config_file or os.environ.get("EDGED_CONFIG")).absolute()
    where = Path(socket) if socket else orders.find()
    client = httpx.Client(
        base_url="http://edged", transport=httpx.HTTPTransport(uds=str(where)), timeout=10
    )
    findings: list[Finding] = []
    status: dict[str, Any] | None = None
    try:
        status = client.get("/status").raise_for_status().json()
        findings.append(Finding("ok", "daemon", f"edged {status['version']}, pid {status['pid']}"))
    except httpx.HTTPError as error:
        mend = (
            "run this with sudo"
            if "Permission denied" in str(error)
            else "systemctl status edged; journalctl -u edged -n 50"
        )
        findings.append(Finding("bad", "daemon", f"does not answer at {where} ({error})", mend))
    box = Box(load_config(config_file), path, state_folder(config_file), status, client)
    findings += checks.everything(box)
    return findings, box


def snippets(box: Box) -> str:
    """Return what a person pastes into a client: curl, Python, Node."""
    served = checks.served(box.status) if box.status else []
    best = _best(served, tls=True)
    if best is None:
        return "\nFor clients: no TCP address is served, see `listen` in models.toml"
    base = f"{'https' if best.tls else 'http'}://{_known_as(best)}/v1"
    model = next(iter(box.config.models), "MODEL")
    is_own_ca = best.tls and box.config.server.tls.mode == "self-signed"
    curl_ca = "--cacert ca.crt " if is_own_ca else ""
    who = "clients on this box, no other can reach it" if best.loopback else "clients"
    auth_of_box = box.config.server.auth
    is_keyless = auth_of_box == "none" or (best.loopback and auth_of_box == "auto")
    key = "with any key" if is_keyless else "and a key of `edged key add NAME`"
    lines = [f"\nFor {who} ({base}, {key}):\n"]
    if is_own_ca:
        lines.append(f"  {_ca(box, best, served)}\n")
    lines.append(f'  curl {curl_ca}{base}/models -H "Authorization: Bearer KEY"\n')
    more = (
        ",\n                  http_client=httpx.Client(verify=ssl.create_default_context("
        'cafile="ca.crt"))'
        if is_own_ca
        else ""
    )
    imports = "import ssl, httpx; " if is_own_ca else ""
    lines += [
        f"  # Python\n  {imports}from openai import OpenAI",
        f'  client = OpenAI(base_url="{base}", api_key="KEY"{more})',
        f'  client.chat.completions.create(model="{model}", messages=[...])\n',
        f"  // Node{'  (NODE_EXTRA_CA_CERTS=ca.crt node app.mjs)' if is_own_ca else ''}",
        '  import OpenAI from "openai";',
        f'  const client = new OpenAI({{ baseURL: "{base}", apiKey: "KEY" }});',
    ]
    return "\n".join(lines)


def _best(served: list[Listen], *, tls: bool) -> Listen | None:
    """Return the address for clients: one that others reach, with TLS if there is and `tls`."""
    usable = [each for each in served if tls or not each.tls]
    return min(usable, key=lambda each: (each.loopback, not each.tls), default=None)


def _known_as(listen: Listen) -> Listen:
    """Return the address with a host that clients can ask; all addresses are this box's first."""
    if not ipaddress.ip_address(listen.host).is_unspecified:
        return listen
    own = [ipaddress.ip_address(each) for each in certificates.addresses()]
    is_v4 = listen.host == "0.0.0.0"  # noqa: S104 - `::` is both, as a rule
    own = [each for each in own if each.version == 4 or not is_v4]  # noqa: PLR2004 - IPv4
    first = min(own, key=lambda each: (each.is_loopback, each.version))
    return msgspec.structs.replace(listen, host=str(first))


def _ca(box: Box, best: Listen, served: list[Listen]) -> str:
    """Return how a client gets the certificate of this box's CA."""
    plain = _best(served, tls=False)
    if plain is None or (plain.loopback and not best.loopback):
        return f"# once: copy {box.state / 'tls' / 'ca.crt'} of this box to the client"
    return f"curl -o ca.crt http://{_known_as(plain)}/ca.crt     # once"


# ── for support ──


def report(
    config_file: ConfigFile = None,
    socket: orders.Socket = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where it is written.")
    ] = None,
) -> None:
    """Write a bundle for support: status, configuration, log and findings, without keys."""
    findings, box = _examine(config_file, socket)
    parts = {
        "about.json": json.dumps(
            {
                "edged": __version__,
                "python": platform.python_version(),
                "system": platform.platform(),
                "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
            indent=2,
        ),
        "doctor.json": json.dumps(msgspec.to_builtins(findings), indent=2),
        "status.json": json.dumps(box.status, indent=2),
        "models.toml": _content(box.path),
        "keys.txt": _key_names(box.path),
        "log.txt": _log(box),
    }
    target = output or Path(f"edged-report-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.tar.gz")
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        fail(f"{target}: {error.strerror}")
    with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as bundle:
        for name, text in parts.items():
            content = for_strangers(text).encode()
            entry = tarfile.TarInfo(f"edged-report/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            bundle.addfile(entry, io.BytesIO(content))
    print(f"{target}: {', '.join(parts)}")
    print("It has no keys, but names of models and keys, and addresses of clients; look before")
    print(f"you send it: tar -xzOf {target} | less")


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        return f"cannot be read: {error}"


def _key_names(path: Path) -> str:
    try:
        keys = auth.load(auth.path_beside(path)).keys
    except ConfigError as error:
        return error.message
    return "\n".join(f"{key.name}{' (admin)' * key.admin}" for key in keys) or "none"


def _log(box: Box) -> str:
    try:
        return box.daemon.get("/admin/log", params={"lines": str(_LOG_LINES)}).text
    except httpx.HTTPError as error:
        return f"the daemon does not answer: {error}"
