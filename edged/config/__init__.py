"""`models.toml`: what it may say (`keys`, `values`), how it is read, what it says (`structs`)."""

from edged.config.reading import SYSTEM_PATH, find, load, parse
from edged.config.sources import HubSpec, Source, hub_spec
from edged.config.structs import (
    Adapter,
    Config,
    ConfigProblems,
    HardwareOverrides,
    LlamaCppOptions,
    LmdeployOptions,
    Model,
    Problem,
    Server,
    Store,
    Tls,
)
from edged.config.values import Listen, Secret

__all__ = [
    "SYSTEM_PATH",
    "Adapter",
    "Config",
    "ConfigProblems",
    "HardwareOverrides",
    "HubSpec",
    "Listen",
    "LlamaCppOptions",
    "LmdeployOptions",
    "Model",
    "Problem",
    "Secret",
    "Server",
    "Source",
    "Store",
    "Tls",
    "find",
    "hub_spec",
    "load",
    "parse",
]
