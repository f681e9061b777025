"""The daemon runs on uvloop, so its parts are tested on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import uvloop


def pytest_asyncio_loop_factories(config: Any, item: Any) -> Mapping[str, Any]:  # noqa: ARG001
    return {"uvloop": uvloop.new_event_loop}
