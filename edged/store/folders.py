"""Where this daemon keeps its files: systemd's folders, else those of the user."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def state(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for what must outlive the daemon; it may not exist yet.

    systemd's `STATE_DIRECTORY` (the first, if it names several), else `$XDG_STATE_HOME/edged`,
    else `~/.local/state/edged`; `/var/lib/edged` for a user without a home.
    """
    return _folder(environment, "STATE", ".local/state", Path("/var/lib/edged"))


def cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for what may be lost; it may not exist yet.

    Likewise `CACHE_DIRECTORY`, `$XDG_CACHE_HOME/edged`, `~/.cache/edged`, `/var/cache/edged`.
    """
    return _folder(environment, "CACHE", ".cache", Path("/var/cache/edged"))


def runtime(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for sockets, which need not outlive the daemon; it may not exist yet.

    systemd's `RUNTIME_DIRECTORY`, else `$XDG_RUNTIME_DIR/edged`, else the state folder: a user
    without a session has nothing else that is its own.
    """
    given = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    xdg = environment.get("XDG_RUNTIME_DIR", "")
    if given:
        return Path(given)
    return Path(xdg) / "edged" if xdg.startswith("/") else state(environment)


def admin_socket(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where the daemon takes orders."""
    return runtime(environment) / "admin.sock"


def _folder(environment: Mapping[str, str], kind: str, below_home: str, homeless: Path) -> Path:
    given = environment.get(f"{kind}_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    xdg = environment.get(f"XDG_{kind}_HOME", "")
    if xdg.startswith("/"):  # the XDG specification: a relative path is to be ignored
        return Path(xdg) / "edged"
    try:
        return Path.home() / below_home / "edged"
    except RuntimeError:
        return homeless
