"""What `models.toml` says, as frozen Structs.

All durations are seconds (float), all sizes bytes (int). What the file leaves out carries the
defaults below; `[defaults]` is already merged into each `Model`.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from edged.config.keys import (
    Auth,
    Backend,
    FlashAttention,
    KvType,
    LoadWhen,
    ModelKind,
    OutputFormat,
    Pooling,
    QuantPolicy,
    Require,
    Speculation,
    TlsMode,
)
from edged.config.sources import Source
from edged.config.values import Listen, Secret
from edged.errors import ConfigError
from edged.protocol import Sampling


class Tls(Struct, frozen=True):
    """Encryption: addresses that speak HTTPS, beside those of `Server.listen`."""

    mode: TlsMode = "off"
    listen: tuple[Listen, ...] = (Listen("tcp", "0.0.0.0", 8443, tls=True),)  # noqa: S104 - wants keys
    cert: str | None = None  # with "files": PEM, the leaf first
    key: str | None = None


class Server(Struct, frozen=True):
    """How clients reach the API."""

    listen: tuple[Listen, ...] = (Listen("tcp", "127.0.0.1", 8000),)
    auth: Auth = "auto"
    allow: tuple[str, ...] = (
        "127.0.0.0/8",
        "::1/128",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "fc00::/7",
        "fe80::/10",
    )
    announce: bool = True  # by mDNS, where it listens beyond loopback and wants keys
    hosts: tuple[str, ...] = ()  # names of this box, for browsers that have no key
    cors: tuple[str, ...] = ()  # origins whose pages may ask from a browser; "*": all
    max_body_bytes: int = 32 << 20
    media_hosts: tuple[str, ...] = ()  # images may be fetched from them
    responses_keep_s: float = 30 * 86400.0  # 0: nothing is kept
    responses_max_bytes: int = 256 << 20  # 0: the same
    prefix_cache_max_bytes: int = 4 << 30  # of all models; 0: no prefix outlives its worker
    tls: Tls = Tls()

    @property
    def addresses(self) -> tuple[Listen, ...]:
        """All that is to be listened on, with and without TLS."""
        return (*self.listen, *(self.tls.listen if self.tls.mode != "off" else ()))


class HardwareOverrides(Struct, frozen=True):
    """What overrules detection."""

    reserve_memory_bytes: int | None = None  # None: 1 GiB, a quarter of the limit if that is less
    gpus: Literal["auto", "none"] | tuple[int, ...] = "auto"


class Store(Struct, frozen=True):
    """Where fetched model files are kept, and how they are fetched."""

    folder: str | None = None  # None: `models` in the state folder
    offline: bool = False
    max_rate_bytes: int | None = None  # a second, of one process
    hf_token: Secret | None = None
    ms_token: Secret | None = None


class Adapter(Struct, frozen=True):
    """One entry of `[models.NAME.llamacpp.lora]`."""

    name: str
    gguf: Source | None = None  # None: it could not be read, which is a problem
    scale: float = 1.0  # where the request gives none
    aliases: tuple[str, ...] = ()


class LlamaCppOptions(Struct, frozen=True):
    """Settings of the llama.cpp engine; None: edged decides."""

    threads: int | None = None
    threads_batch: int | None = None
    gpu_layers: int | None = None
    kv_type: KvType = "f16"
    flash_attention: FlashAttention = "auto"
    batch: int = 512
    full_window: bool | None = None
    pooling: Pooling | None = None  # None: as the file says
    mmproj: Source | None = None
    speculation: Speculation = "auto"
    draft: Source | None = None
    prefix_cache_bytes: int = 1 << 30  # 0: no prefix outlives the worker
    lora: tuple[Adapter, ...] = ()


class LmdeployOptions(Struct, frozen=True):
    """Settings of the LMDeploy engine; None: edged decides."""

    tp: int | None = None
    quant_policy: QuantPolicy | None = None
    cache_max_entry_count: float | None = None
    pytorch: bool = False  # its PyTorch engine may run what TurboMind cannot


class Model(Struct, frozen=True):
    """One `[models.NAME]`, with `[defaults]` merged in."""

    name: str
    gguf: Source | None = None
    safetensors: Source | None = None
    upstream: str | None = None
    aliases: tuple[str, ...] = ()
    backend: Backend = "auto"
    kind: ModelKind = "auto"
    require: Require = "any"
    load: LoadWhen = "on-demand"
    pin: bool = False
    idle_unload_s: float | None = 900.0  # None: never
    context: int = 8192
    context_is_default: bool = False  # not said by the model itself: a shorter model lowers it
    parallel: int = 4
    parallel_is_default: bool = False  # nobody said it: the plan may choose
    queue: int = 64
    output_format: OutputFormat = "auto"
    probe: str | None = None  # what a worker must answer before it takes over from another
    recycle_growth_bytes: int | None = None  # None: edged decides; 0: never
    sampling: Sampling = Sampling()
    llamacpp: LlamaCppOptions = LlamaCppOptions()
    lmdeploy: LmdeployOptions = LmdeployOptions()

    @property
    def ggufs(self) -> tuple[Source, ...]:
        """Every GGUF that it names: the model itself first, then what comes to its help."""
        options = self.llamacpp
        adapters = (adapter.gguf for adapter in options.lora)
        named = (self.gguf, options.mmproj, options.draft, *adapters)
        return tuple(source for source in named if source is not None)

    @property
    def sources(self) -> tuple[tuple[Source, Literal["gguf", "safetensors"]], ...]:
        """Every source that it names, each with the form in which it is named."""
        found: list[tuple[Source, Literal["gguf", "safetensors"]]] = []
        if self.safetensors is not None:
            found.append((self.safetensors, "safetensors"))
        found += [(source, "gguf") for source in self.ggufs]
        return tuple(found)


class Config(Struct, frozen=True):
    """The whole file. `path` is absolute: relative `file:` sources start beside it."""

    path: str = ""
    server: Server = Server()
    hardware: HardwareOverrides = HardwareOverrides()
    store: Store = Store()
    models: dict[str, Model] = {}


class Problem(Struct, frozen=True):
    """One thing that is wrong; `line` counts from 1, 0 means the whole file."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}"


class ConfigProblems(ConfigError):
    """Everything that is wrong with a file, in the order of its lines."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
