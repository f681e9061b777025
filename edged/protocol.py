"""Messages between daemon and worker, and their framing.

One `socketpair` a worker. A frame is a 4-byte little-endian length and one msgpack message of a
tagged union. The daemon sends `ToWorker`, the worker `ToDaemon`; the first frame down is `Load`,
the first frames up are `Loading`, then `Ready` or `LoadFailed`. One `Step` frame carries every
event of one engine step. Every `Generate` gets exactly one `Finish` or `Failed`.

The end of the stream means that the other side is gone: the worker then exits, the daemon reaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from msgspec import Struct

MAX_FRAME_BYTES = 256 << 20
_LENGTH_BYTES = 4

EXIT_OK = 0
EXIT_BAD_MODEL = 65  # EX_DATAERR: the same file would fail again
EXIT_NO_ENGINE = 69  # EX_UNAVAILABLE: the engine's library is not installed
EXIT_FAULT = 70  # EX_SOFTWARE: an engine state that cannot be repaired (fatal decode)


# ── what a worker is started with ──


class LlamaCppLaunch(Struct, frozen=True):
    """Settings of one `llama_context`; everything is decided, nothing is "auto"."""

    threads: int
    threads_batch: int
    gpu_layers: int = 0
    kv_type: str = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    batch: int = 512  # tokens of one decode call at most


class Launch(Struct, frozen=True):
    """What needs a new worker when it changes: files, engine, context, parallel, settings."""

    model: str
    engine: Literal["llamacpp", "lmdeploy"]
    path: str
    file_id: str  # size and mtime (or digest): a replaced file is a new launch
    context: int  # tokens per request
    parallel: int  # sequences decoded together
    pool: int  # KV cells in all
    llamacpp: LlamaCppLaunch | None = None


# ── daemon → worker ──


class Sampling(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How the next token is chosen. None means: not said; see `over` and `DEFAULTS`."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool | None = None

    def over(self, defaults: Sampling) -> Sampling:
        """Return these values, with `defaults` where this one is silent."""
        said = {f: v for f in self.__struct_fields__ if (v := getattr(self, f)) is not None}
        return msgspec.structs.replace(defaults, **said)


# OpenAI's defaults where it has them; the rest switched off.
DEFAULTS = Sampling(
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    typical_p=1.0,
    repeat_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    ignore_eos=False,
)


class Messages(Struct, frozen=True, tag="messages"):
    """A conversation for the model's own chat template. Messages are plain OpenAI dicts."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = {}


class Text(Struct, frozen=True, tag="text"):
    """A prompt as it stands; special tokens are not parsed out of it."""

    text: str


class Tokens(Struct, frozen=True, tag="tokens"):
    """A prompt as token ids of the model's vocabulary."""

    tokens: list[int]


Prompt = Messages | Text | Tokens


class Generate(Struct, frozen=True, tag="generate"):
    """One generation. `id` is unique on its socket; the WorkerProcess sets it."""

    prompt: Prompt
    sampling: Sampling = Sampling()
    max_tokens: int | None = None  # None: to the end of the context
    stop: list[str] = []
    group: str = ""  # prefixes are shared inside a group only
    id: int = 0


class Load(Struct, frozen=True, tag="load"):
    """First frame: load this and say `Ready`."""

    launch: Launch


class Abort(Struct, frozen=True, tag="abort"):
    """The client of `id` is gone; an unknown id is no error."""

    id: int


ToWorker = Load | Generate | Abort


# ── worker → daemon ──


class Usage(Struct, frozen=True):
    """Counts of one generation, in tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Timings(Struct, frozen=True):
    """Where the time of one generation went, in ms."""

    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


class Started(Struct, frozen=True, tag="started"):
    """The prompt was accepted: from here on an error arrives inside the answer."""

    id: int
    prompt_tokens: int


class Delta(Struct, frozen=True, tag="delta", omit_defaults=True):
    """A piece of the answer: whole UTF-8 characters, never a part of a stop string."""

    id: int
    content: str = ""
    reasoning: str = ""
    n_tokens: int = 1  # tokens that this piece stands for


class Finish(Struct, frozen=True, tag="finish"):
    """The regular end of a generation."""

    id: int
    reason: Literal["stop", "length"]
    usage: Usage = Usage()
    timings: Timings = Timings()


class Failed(Struct, frozen=True, tag="failed"):
    """The irregular end of a generation: `code` is one of `errors.py`."""

    id: int
    code: str
    message: str
    param: str | None = None


Event = Started | Delta | Finish | Failed


class Loading(Struct, frozen=True, tag="loading"):
    """Progress of the load, 0 to 1; also the sign that loading is alive."""

    fraction: float


class Ready(Struct, frozen=True, tag="ready"):
    """The worker serves. What it found in the file and what it took."""

    build: str  # engine and version, for system_fingerprint
    context: int
    n_vocab: int
    architecture: str
    chat_template: bool
    threads: int
    load_s: float


class LoadFailed(Struct, frozen=True, tag="load_failed"):
    """The load failed; the exit code says whether trying again makes sense."""

    message: str


class Step(Struct, frozen=True, tag="step"):
    """All events of one engine step."""

    events: list[Event]


class Stats(Struct, frozen=True, tag="stats"):
    """Sent every second while the worker lives. `progress` counts engine steps."""

    progress: int
    running: int
    waiting: int
    cells_used: int
    cells: int
    prompt_tokens: int  # computed since the start, cached ones not counted
    cached_tokens: int
    completion_tokens: int
    step_ms: float  # moving average
    preemptions: int = 0


ToDaemon = Loading | Ready | LoadFailed | Step | Stats


# ── framing ──


class FrameError(ValueError):
    """The stream does not carry frames of this protocol; close it."""


class Frames:
    """Encoder and incremental decoder of one direction pair.

    `incoming` is the union that this side receives (`ToWorker` or `ToDaemon`), in frames of at
    most `max_bytes`. Not thread-safe: one owner, the asyncio loop of its process.
    """

    def __init__(self, incoming: Any, *, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._encoder = msgspec.msgpack.Encoder()
        self._buffer = bytearray()

    def encode(self, message: ToWorker | ToDaemon) -> bytes:
        """Return the frame of `message`; raises FrameError above MAX_FRAME_BYTES."""
        body = self._encoder.encode(message)
        if len(body) > MAX_FRAME_BYTES:
            raise FrameError(f"frame of {len(body)} bytes, at most {MAX_FRAME_BYTES} allowed")
        return len(body).to_bytes(_LENGTH_BYTES, "little") + body

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take received bytes and yield every message that is now whole.

        Raises FrameError when the bytes cannot be a frame; nothing may be fed after that.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "little")
            if length > self._max_bytes:
                raise FrameError(f"frame of {length} bytes, at most {self._max_bytes} allowed")
            end = _LENGTH_BYTES + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH_BYTES:end])
            del self._buffer[:end]
            try:
                yield self._decoder.decode(body)
            except msgspec.MsgspecError as error:
                raise FrameError(f"not a message of this protocol: {error}") from error
