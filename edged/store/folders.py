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
    given = environment.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    xdg = environment.get("XDG_STATE_HOME", "")
    if xdg.startswith("/"):  # the XDG specification: a relative path is to be ignored
        return Path(xdg) / "edged"
    try:
        return Path.home() / ".local" / "state" / "edged"
    except RuntimeError:
        return Path("/var/lib/edged")
