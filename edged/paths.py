"""Folders of the daemon: systemd's when it started us, else the user's XDG folders.

The functions only name a folder; who writes into it creates it.
"""

from __future__ import annotations

import os
from pathlib import Path


def state_dir() -> Path:
    """Return the folder for what must survive a restart."""
    return _systemd("STATE_DIRECTORY") or _xdg("XDG_STATE_HOME", ".local/state")


def cache_dir() -> Path:
    """Return the folder for what can be fetched or computed again."""
    return _systemd("CACHE_DIRECTORY") or _xdg("XDG_CACHE_HOME", ".cache")


def runtime_dir() -> Path:
    """Return the folder for sockets: private to this user, gone after a reboot if possible."""
    given = _systemd("RUNTIME_DIRECTORY")
    if given:
        return given
    root = os.environ.get("XDG_RUNTIME_DIR", "")
    # su and containers lack it; a folder in /tmp could be another user's, so stay at home
    return Path(root) / "edged" if root.startswith("/") else state_dir() / "run"


def _systemd(variable: str) -> Path | None:
    first = os.environ.get(variable, "").split(":")[0]
    return Path(first) if first else None


def _xdg(variable: str, below_home: str) -> Path:
    root = os.environ.get(variable, "")
    # the XDG specification: a relative path is to be ignored
    return (Path(root) if root.startswith("/") else Path.home() / below_home) / "edged"
