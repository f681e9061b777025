"""docs/api.md tells the clients and versions that are pinned, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from tests.clients.foreign.environments import versions

DOCS = (Path(__file__).parents[2] / "docs/api.md").read_text()


def test_the_table_of_clients_is_what_is_pinned() -> None:
    table = DOCS.partition("## Clients")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\S+ \((?:Python|Node)\)) \| (\S+) \| \S", table, re.MULTILINE)
    assert set(rows) == versions()
    assert len(rows) == len(set(rows))
