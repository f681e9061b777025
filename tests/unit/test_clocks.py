"""Clocks: what waits or has a limit goes by one that nobody can set."""

from __future__ import annotations

import ast
from pathlib import Path

import edged

ROOT = Path(edged.__file__).parent

# Where the wall clock is meant: moments that people read, and ends that people have set.
MEANT = {
    "api/access.py": "keys end",
    "api/openai/envelope.py": "created",
    "api/openai/models.py": "created",
    "api/openai/responses/reply.py": "completed_at",
    "api/openai/responses/request.py": "created_at",
    "auth.py": "keys end",
    "cli": "what is shown and signed",
    "daemon/reloading.py": "applied_at",
    "daemon/tls.py": "certificates end",
    "store/lock.py": "fetched_at",
    "store/ageing.py": "how old stored responses are that were written before the box was started",
    "worker/template/__init__.py": "templates that ask for the date",
    "worker/template/environment.py": "templates that ask for the date",
    "supervisor/ledger.py": "which launch was seen last, over restarts",
}


def asks_the_wall(path: Path) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("time", "time"), ("datetime", "now"), ("date", "today")}
        for node in ast.walk(ast.parse(path.read_text()))
    )


def test_nothing_else_goes_by_the_wall_clock() -> None:
    found = set()
    for path in ROOT.rglob("*.py"):
        if asks_the_wall(path):
            name = path.relative_to(ROOT).as_posix()
            found.add("cli" if name.startswith("cli/") else name)
    assert found == MEANT.keys()
