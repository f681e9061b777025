"""What the checks ask of the daemon: its address, its models, one tool and one schema.

The random model says noise unless a grammar holds it; so the schemas have no free text.
"""

from __future__ import annotations

import os
from typing import Any

URL = os.environ["EDGED_URL"]
V1 = f"{URL}/v1"
KEY = "none"
GUIDE = "edge-guide"  # answers questions about edged, at temperature 0
CALLER = "tool-caller"  # random weights, Qwen2.5's template
PLAYED = "played"  # a worker that plays a model which understands
EMBEDDER = "embedder"
RERANKER = "reranker"
LIMIT_S = 50.0

QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "What is edged?"}]
LONG = 4000  # tokens that take the random model longer than TOO_SHORT_S
TOO_SHORT_S = 0.05

CITIES = ["Berlin", "Paris", "Tokyo"]
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": CITIES},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "hourly": {"type": "boolean"},
    },
    "required": ["city", "days", "hourly"],
    "additionalProperties": False,
}
FORECAST: dict[str, Any] = {
    "name": "forecast",
    "description": "The weather of the next days",
    "parameters": PARAMETERS,
}
TOOL: dict[str, Any] = {"type": "function", "function": FORECAST}
CLOCK: dict[str, Any] = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}


def is_forecast(arguments: dict[str, Any]) -> bool:
    """Return whether these are arguments that the schema admits."""
    return (
        arguments.keys() == {"city", "days", "hourly"}
        and arguments["city"] in CITIES
        and arguments["days"] in range(1, 10)
        and isinstance(arguments["hourly"], bool)
    )
