"""`edged discover`: boxes on this network that say that they speak OpenAI's API (mDNS)."""

from __future__ import annotations

import json
import threading
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from edged.cli.client import Json, fail

# The subtype is what makes them OpenAI-compatible; http is the type, for there is none of its own.
_TYPES = {
    "_openai._sub._http._tcp.local.": "http",
    "_openai._sub._https._tcp.local.": "https",
}
_RESOLVE_MS = 2000


def discover(
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.5, max=60, help="So long is listened.")
    ] = 3.0,
    interface: Annotated[
        str | None,
        typer.Option("--interface", metavar="ADDRESS", help="Only on the one with this address."),
    ] = None,
    json_: Json = False,
) -> None:
    """List the boxes of this network that say that they speak OpenAI's API."""
    found = browse(seconds, interface)
    if json_:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print(
            "no box was found; a box is announced while it listens beyond loopback and wants keys "
            "(`announce` in its models.toml)"
        )
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for head in ("NAME", "URL", "KEY", "VERSION"):
        table.add_column(head, overflow="fold")
    for each in found:
        wants = "none" if each["auth"] == "none" else "wanted"
        table.add_row(each["name"], each["url"], wants, each["version"])
    Console().print(table)


def browse(seconds: float, interface: str | None = None) -> list[dict[str, Any]]:
    """Return what answers within this time, by name; one entry for each of HTTP and HTTPS."""
    import zeroconf  # noqa: PLC0415 -- half a second of imports that only this command needs

    found: dict[str, dict[str, Any]] = {}

    def changed(**said: Any) -> None:
        if said["state_change"] is not zeroconf.ServiceStateChange.Removed:
            resolve(said["zeroconf"], said["service_type"], said["name"])

    def resolve(net: Any, service_type: str, name: str) -> None:
        # A subtype's instance has its name below the type proper.
        proper = service_type.partition("._sub.")[2]
        instance = name.removesuffix(f".{service_type}").removesuffix(f".{proper}")
        info = net.get_service_info(proper, f"{instance}.{proper}", _RESOLVE_MS)
        if info is None or not info.parsed_addresses():
            return
        text = {
            key: value or "" for key, value in info.decoded_properties.items() if key is not None
        }
        address = info.parsed_addresses()[0]
        host = f"[{address}]" if ":" in address else address
        path = text.get("path", "/v1")
        found[f"{instance} {_TYPES[service_type]}"] = {
            "name": instance,
            "url": f"{_TYPES[service_type]}://{host}:{info.port}{path}",
            "auth": text.get("auth", ""),
            "version": text.get("version", ""),
            "host": (info.server or "").rstrip("."),
        }

    try:
        net = zeroconf.Zeroconf(
            interfaces=[interface] if interface else zeroconf.InterfaceChoice.All
        )
    except OSError as error:
        fail(f"this box cannot listen for others: {error}")
    try:
        browser = zeroconf.ServiceBrowser(net, list(_TYPES), handlers=[changed])
        threading.Event().wait(seconds)
        browser.cancel()
    finally:
        net.close()
    return [found[name] for name in sorted(found)]
