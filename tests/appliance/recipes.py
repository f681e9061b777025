"""The commands that docs/operations.md tells people to type, to be run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs/operations.md"
SUDO = (
    'sudo() { "$@"; }\nset -eu\ncd /root\n'  # root types it here, in a shell that stops at faults
)


def documented(heading: str, number: int = 0, **instead: str) -> str:
    """Return a block of commands below a heading, as a script.

    `instead` of what differs from box to box: patterns by name, see `_VARIABLE`.
    """
    section = re.search(
        rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    assert section, f"{PAGE} has no section {heading}"
    script = re.findall(r"^```\n(.*?)^```$", section[1], re.DOTALL | re.MULTILINE)[number]
    for name, value in instead.items():
        script, count = re.subn(_VARIABLE[name], value, script)
        assert count, f"{heading}: nothing to put {value} for"
    return SUDO + script


_VARIABLE = {
    "package": r"\./edged_\S+\.deb",
    "repository": r"https://your\.server/edged",
}
