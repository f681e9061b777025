"""What a worker is started with, and how its exit is read."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

EXIT_OK = 0
EXIT_BAD_MODEL = 65  # EX_DATAERR: the same file would fail again
EXIT_NO_ENGINE = 69  # EX_UNAVAILABLE: the engine's library is not installed
EXIT_FAULT = 70  # EX_SOFTWARE: an engine state that cannot be repaired (fatal decode)


#: What a model is for. A "chat" model also continues plain texts.
Kind = Literal["chat", "embeddings", "rerank"]

#: How one vector is made of a text's many; "rank": one score, by the model's classifier.
Pooling = Literal["mean", "cls", "last", "rank"]


class PrefixCache(Struct, frozen=True):
    """Where prefixes survive the worker, and how many bytes of them."""

    bytes: int  # of this model; 0: nothing is saved, and what was is removed
    total: int  # of all models
    folder: str = ""  # of all models; "": below the cache folder of whoever runs the worker


class LlamaCppLaunch(Struct, frozen=True):
    """Settings of one `llama_context`; everything is decided, nothing is "auto"."""

    threads: int
    threads_batch: int
    gpu_layers: int = 0
    kv_type: str = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    batch: int = 512  # tokens of one decode call at most
    residents: int = 8  # sequences beside `parallel` whose memory may stay when they have ended
    full_window: bool = True  # layers with a window keep what lies behind it, while there is room
    pooling: Pooling | None = None  # None: a chat model
    mmproj: str | None = None  # the projector's file
    mmproj_id: str = ""  # as `file_id`
    media: tuple[Literal["image", "audio"], ...] = ()  # what the projector takes
    speculation: bool = True  # tokens may be guessed ahead, where that pays
    draft: str | None = None  # the file of a small model that guesses
    draft_id: str = ""  # as `file_id`
    prefix_cache: PrefixCache | None = None


class LmdeployLaunch(Struct, frozen=True):
    """Settings of LMDeploy's engine; bytes are those of each GPU."""

    python: str  # the interpreter of the environment that has LMDeploy
    devices: tuple[int, ...]  # by their order on the PCI bus, as NVML counts; one rank on each
    weights_bytes: int  # with all else that is no KV cache, as estimated
    cache_bytes: int  # of the KV cache
    backend: Literal["turbomind", "pytorch"] = "turbomind"
    dtype: Literal["float16", "bfloat16"] = "float16"
    kv_bits: Literal[0, 4, 8] = 0  # 0: full precision
    prefixes: bool = True  # are shared
    grammars: bool = True  # may be asked for
    images: bool = False  # are read


class Launch(Struct, frozen=True):
    """What needs a new worker when it changes: files, engine, context, parallel, settings."""

    model: str
    engine: Literal["llamacpp", "lmdeploy"]
    path: str
    file_id: str  # size and mtime (or digest): a replaced file is a new launch
    context: int  # tokens per request
    parallel: int  # sequences decoded together
    pool: int  # KV cells in all
    kind: Kind = "chat"
    output_format: str = "auto"  # a row of worker/output's table; "auto": found from the template
    llamacpp: LlamaCppLaunch | None = None
    lmdeploy: LmdeployLaunch | None = None


class AdapterFile(Struct, frozen=True):
    """A LoRA adapter's file. Another `file_id` under the same name is a new version."""

    name: str
    path: str
    file_id: str
