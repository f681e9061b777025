"""`models.toml`: what it may say (`keys`, `values`), how it is read, what it says (`structs`)."""

from edged.config.reading import SYSTEM_PATH, find, load, parse
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
    Tls,
)
from edged.config.values import Listen, Source

__all__ = [
    "SYSTEM_PATH",
    "Adapter",
    "Config",
    "ConfigProblems",
    "HardwareOverrides",
    "Listen",
    "LlamaCppOptions",
    "LmdeployOptions",
    "Model",
    "Problem",
    "Server",
    "Source",
    "Tls",
    "find",
    "load",
    "parse",
]
