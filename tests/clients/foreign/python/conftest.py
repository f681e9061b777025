"""A class may leave tests of a suite to another one: `left_out` names them, and where they are."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [
        item
        for item in items
        if getattr(item, "originalname", "")
        not in getattr(getattr(item, "cls", None), "left_out", ())
    ]
