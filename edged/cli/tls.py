"""`edged tls`: the box's own CA and the certificate that it shows."""

from __future__ import annotations

import json
import os
import pwd
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from edged import config
from edged.cli.client import ConfigFile, Json, fail
from edged.config import SYSTEM_PATH, Config
from edged.daemon import certificates
from edged.errors import ConfigError
from edged.store import folders

tls = typer.Typer(help="Encryption: make and show certificates.", no_args_is_help=True)

_USER = "edged"  # of the daemon that the package runs
_DAY_S = 86400


@tls.command("init")
def init(
    config_file: ConfigFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing when all is there.")] = False,
) -> None:
    """Make the box's own CA and a leaf for its names and addresses; keep those that are there."""
    folder = state_folder(config_file) / "tls"
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        _give_to_daemon(folder)
        is_new = certificates.ensure(folder, certificates.names(), time.time())
        found = certificates.read(folder / "leaf.crt")
    except PermissionError as error:
        fail(f"{error.filename or folder}: {error.strerror}; try again with sudo")
    except (OSError, ValueError) as error:
        fail(str(error))
    if quiet and not is_new:
        return
    print(f"{'made' if is_new else 'kept'} {folder}/leaf.crt for {', '.join(found.names)}")
    print(f"it ends on {_day(found.ends)} and is renewed by the daemon")
    print('serve it with [server.tls] mode = "self-signed" in models.toml')
    print(f"clients trust {folder}/ca.crt; they get it at http://THIS-BOX:8000/ca.crt")


@tls.command("show")
def show(config_file: ConfigFile = None, json_: Json = False) -> None:
    """Show which certificate clients see, for which names, and when it ends."""
    loaded = load_config(config_file)
    path = leaf(loaded, config_file)
    if path is None:
        fail('TLS is off; [server.tls] mode = "self-signed" in models.toml turns it on')
    is_own = loaded.server.tls.mode == "self-signed"
    try:
        found = certificates.read(path)
        ca = certificates.read(path.with_name("ca.crt")) if is_own else None
    except (OSError, ValueError) as error:
        fail(f"{path}: {error}")
    if json_:
        facts: dict[str, Any] = {
            "file": str(path),
            "names": found.names,
            "starts": found.starts,
            "ends": found.ends,
            "sha256": found.sha256,
            "ca_sha256": ca and ca.sha256,
        }
        print(json.dumps(facts, indent=2))
        return
    days = int((found.ends - time.time()) // _DAY_S)
    print(f"{path}\nfor {', '.join(found.names)}\nuntil {_day(found.ends)} ({days} days)")
    print(f"SHA-256 {found.sha256}")
    if ca is not None:
        print(f"its CA, which clients get once: {path.with_name('ca.crt')}\nSHA-256 {ca.sha256}")


def leaf(loaded: Config, config_file: str | None) -> Path | None:
    """Return the certificate that clients are shown; None while TLS is off."""
    settings = loaded.server.tls
    if settings.mode == "files":
        return Path(settings.cert or "")
    return None if settings.mode == "off" else state_folder(config_file) / "tls" / "leaf.crt"


def load_config(config_file: str | None) -> Config:
    """Return what models.toml says; ends the command where it cannot be used."""
    try:
        return config.load(config.find(config_file or os.environ.get("EDGED_CONFIG")))
    except ConfigError as error:
        fail(error.message)


def state_folder(config_file: str | None) -> Path:
    """Return the state folder of the daemon that serves this file: the package's, or the user's."""
    path = config.find(config_file or os.environ.get("EDGED_CONFIG")).absolute()
    if path == SYSTEM_PATH and "STATE_DIRECTORY" not in os.environ:
        return folders.state({"STATE_DIRECTORY": "/var/lib/edged"})
    return folders.state()


def _give_to_daemon(folder: Path) -> None:
    """Let the packaged daemon renew what root made."""
    if os.geteuid() != 0 or folder.parent != Path("/var/lib/edged"):
        return
    try:
        user = pwd.getpwnam(_USER)
    except KeyError:
        return
    for each in (folder, *folder.iterdir()):
        os.chown(each, user.pw_uid, user.pw_gid)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
