"""What the daemon says about itself: the answer of `/status`, and what `edged status` prints.

Plain data below the supervisor, so that the daemon, the api and the CLI share one shape.
Times are in s, sizes in bytes.
"""

from __future__ import annotations

from typing import Literal, Self

from msgspec import Struct

from edged.hardware import Hardware
from edged.protocol import Kind, Launch, Stats

State = Literal["fetching", "starting", "ready", "draining", "stopped", "backoff", "failed"]


class Settings(Struct, frozen=True):
    """What was chosen for a llama.cpp worker when it was launched."""

    threads: int  # of a step in which everyone gets one token
    threads_batch: int  # of a step with prompts
    batch: int  # tokens of a step at most
    kv_type: str
    flash_attention: Literal["auto", "on", "off"]
    gpu_layers: int
    pool: int  # KV cells of all requests together
    speculation: Literal["off", "n-gram", "draft"]  # how tokens are guessed ahead, where it pays

    @classmethod
    def of(cls, launch: Launch | None) -> Self | None:
        """Return the settings of a launch; None where no llama.cpp runs."""
        if launch is None or launch.llamacpp is None:
            return None
        chosen = launch.llamacpp
        guesses = chosen.speculation and launch.kind == "chat"
        return cls(
            threads=chosen.threads,
            threads_batch=chosen.threads_batch,
            batch=chosen.batch,
            kv_type=chosen.kv_type,
            flash_attention=chosen.flash_attention,
            gpu_layers=chosen.gpu_layers,
            pool=launch.pool,
            speculation=("draft" if chosen.draft else "n-gram") if guesses else "off",
        )


class AdapterStatus(Struct, frozen=True):
    """One LoRA adapter of a model."""

    name: str
    state: Literal["stopped", "loading", "ready", "failed"]  # stopped: its model is not loaded
    scale: float  # where a request gives none
    error: str | None = None  # why it failed


class FetchStatus(Struct, frozen=True):
    """How far the files of a model are on their way."""

    source: str
    file: str = ""
    done_bytes: int = 0
    total_bytes: int = 0  # 0: not known yet
    bytes_per_s: float | None = None
    left_s: float | None = None  # None: cannot be told
    note: str = ""  # what is going on beside plain fetching
    error: str | None = None  # why the last try failed
    is_hopeless: bool = False  # … and will again, until somebody does something
    retry_in_s: float | None = None


class ModelStatus(Struct, frozen=True):
    """One model of `models.toml` as it stands now."""

    name: str
    state: State
    engine: str | None  # None: no engine can serve it, `error` says why
    aliases: tuple[str, ...]
    reasons: tuple[str, ...]  # why this engine, and why not the others
    error: str | None  # what went wrong last; None once it is ready again
    since_s: float  # how long it has been in this state
    pid: int | None
    context: int  # tokens per request
    parallel: int  # requests decoded together
    memory_bytes: int | None  # resident set of the worker, else the plan's estimate
    open: int  # requests with the worker
    queued: int  # requests waiting in the daemon
    restarts: int  # workers that died without being asked to
    progress: float | None  # of a load or a fetch, 0 to 1
    load_s: float | None
    build: str | None  # engine and version, for system_fingerprint
    stats: Stats | None
    stderr_tail: tuple[str, ...]
    kind: Kind | None = None  # what it serves; None: an upstream, or it cannot run
    settings: Settings | None = None  # of its worker, else of the plan
    adapters: tuple[AdapterStatus, ...] = ()
    fetch: FetchStatus | None = None  # while files are missing, its own or those of adapters
    reserved_bytes: int | None = None  # memory that nobody else can have while its worker lives
    reserved_gpu_bytes: dict[str, int] = {}  # the same of each GPU that it is on: "GPU 0"
    rolled_back: str | None = None  # why its newest settings are not what runs
    successor_pid: int | None = None  # a worker with its newest settings, not serving yet


class ConfigStatus(Struct, frozen=True):
    """The configuration in force, and what keeps a newer one from being so."""

    path: str
    generation: int  # counts applied configurations, from 1
    applied_at: float  # seconds since the epoch
    problem: str | None  # why the file as it is now is not in force


class Status(Struct, frozen=True):
    """The whole box."""

    version: str
    pid: int
    uptime_s: float
    ready: bool
    waiting_for: tuple[str, ...]  # startup models that are not ready, each with its reason
    listen: tuple[str, ...]
    memory_bytes: int  # resident set of the daemon alone
    config: ConfigStatus
    hardware: Hardware
    models: tuple[ModelStatus, ...]
    loop_lag_s: float = 0.0  # the most that the daemon's loop was late in the last minute
    degraded: tuple[str, ...] = ()  # what the box had and lacks now
    ledger_problem: str | None = None  # why measured memory is not kept on the disk
