"""`models.toml` → frozen Structs. `load` reports every problem at once, with file and line.

All durations are seconds (float), all sizes bytes (int). What the file leaves out carries the
defaults below; `[defaults]` is already merged into each `Model`.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from edged.errors import ConfigError
from edged.protocol import Sampling

Load = Literal["on-demand", "startup"]
Backend = Literal["auto", "llamacpp", "lmdeploy", "upstream"]
KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


class Source(Struct, frozen=True):
    """Where model files come from: `builtin:NAME`, `file:PATH`, `hf:ORG/REPO[:QUANT][@REV]`, …"""

    scheme: Literal["builtin", "file", "hf", "ms", "https"]
    spec: str  # what follows the colon

    def __str__(self) -> str:
        return f"{self.scheme}:{self.spec}"


class Listen(Struct, frozen=True):
    """One address of the API: TCP (an IP address; port 0 = any free one) or a Unix socket."""

    kind: Literal["tcp", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Tls(Struct, frozen=True):
    """Encryption of the TCP addresses."""

    mode: Literal["off"] = "off"


class Server(Struct, frozen=True):
    """How clients reach the API."""

    listen: tuple[Listen, ...] = (Listen("tcp", "127.0.0.1", 8000),)
    auth: Literal["auto", "none"] = "auto"
    allow: tuple[str, ...] = (
        "127.0.0.0/8",
        "::1/128",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "fc00::/7",
        "fe80::/10",
    )
    max_body_bytes: int = 32 << 20
    tls: Tls = Tls()


class HardwareOverrides(Struct, frozen=True):
    """What overrules detection."""

    reserve_memory_bytes: int = 1 << 30
    gpus: Literal["auto", "none"] | tuple[int, ...] = "auto"


class LlamaCppOptions(Struct, frozen=True):
    """Settings of the llama.cpp engine; None: edged decides."""

    threads: int | None = None
    threads_batch: int | None = None
    gpu_layers: int | None = None
    kv_type: KvType = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    batch: int = 512


class LmdeployOptions(Struct, frozen=True):
    """Settings of the LMDeploy engine; None: edged decides."""

    tp: int | None = None
    quant_policy: Literal[0, 4, 8] | None = None
    cache_max_entry_count: float | None = None


class Model(Struct, frozen=True):
    """One `[models.NAME]`, with `[defaults]` merged in."""

    name: str
    gguf: Source | None = None
    safetensors: Source | None = None
    upstream: str | None = None
    aliases: tuple[str, ...] = ()
    backend: Backend = "auto"
    require: Literal["any", "gpu"] = "any"
    load: Load = "on-demand"
    pin: bool = False
    idle_unload_s: float | None = 900.0  # None: never
    context: int = 8192
    parallel: int = 4
    queue: int = 64
    sampling: Sampling = Sampling()
    llamacpp: LlamaCppOptions = LlamaCppOptions()
    lmdeploy: LmdeployOptions = LmdeployOptions()


class Config(Struct, frozen=True):
    """The whole file. `path` is absolute: relative `file:` sources start beside it."""

    path: str = ""
    server: Server = Server()
    hardware: HardwareOverrides = HardwareOverrides()
    models: dict[str, Model] = {}


class Problem(Struct, frozen=True):
    """One thing that is wrong; `line` counts from 1, 0 means the whole file."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


class ConfigProblems(ConfigError):
    """Everything that is wrong with a file, in the order of its lines."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
