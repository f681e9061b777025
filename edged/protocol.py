"""Messages between daemon and worker: `framing.py` carries them over one `socketpair` a worker.

The daemon sends `ToWorker`, the worker `ToDaemon`; the first frame down is `Load`,
the first frames up are `Loading`, then `Ready` or `LoadFailed`. One `Step` frame carries every
event of one engine step. Every request gets exactly one last event: a `Generate` its `Finish`,
a `Call` its `Reply`, and either of them `Failed` instead.

`Adapters` may come down at any time after `Ready`: the whole set that is wanted from then on.

The end of the stream means that the other side is gone: the worker then exits, the daemon reaps.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

EXIT_OK = 0
EXIT_BAD_MODEL = 65  # EX_DATAERR: the same file would fail again
EXIT_NO_ENGINE = 69  # EX_UNAVAILABLE: the engine's library is not installed
EXIT_FAULT = 70  # EX_SOFTWARE: an engine state that cannot be repaired (fatal decode)


#: What a model is for. A "chat" model also continues plain texts.
Kind = Literal["chat", "embeddings", "rerank"]

#: How one vector is made of a text's many; "rank": one score, by the model's classifier.
Pooling = Literal["mean", "cls", "last", "rank"]


# ── what a worker is started with ──


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
    min_tokens: int | None = None  # the answer does not end before
    dry_multiplier: float | None = None  # 0: off, as llama-server's
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None  # -1: the whole context
    dry_sequence_breakers: list[str] | None = None
    xtc_probability: float | None = None  # 0: off
    xtc_threshold: float | None = None

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
    min_tokens=0,
    dry_multiplier=0.0,
    dry_base=1.75,
    dry_allowed_length=2,
    dry_penalty_last_n=-1,
    dry_sequence_breakers=["\n", ":", '"', "*"],
    xtc_probability=0.0,
    xtc_threshold=0.1,
)


class Media(Struct, frozen=True, omit_defaults=True, weakref=True):
    """An image or a sound, decoded by the daemon: the worker parses nothing that a client sent."""

    kind: Literal["image", "audio"]
    data: bytes  # image: rows of RGB, a byte each; audio: PCM, little-endian, channels interleaved
    width: int = 0  # of an image, in pixels
    height: int = 0
    rate: int = 0  # of a sound, in Hz
    channels: int = 0
    sample_bytes: int = 0  # 1: unsigned; 2, 3, 4: signed


class Messages(Struct, frozen=True, tag="messages"):
    """A conversation for the model's own chat template. Messages are plain OpenAI dicts.

    Parts `{"type": "image"}` and `{"type": "audio"}` of their content stand for `media`, in order.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None  # as chat completions have them: type and function
    documents: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = {}
    continue_last: bool = False  # the last message is the assistant's, and is gone on with
    media: list[Media] = []


class Text(Struct, frozen=True, tag="text"):
    """A prompt as it stands; special tokens are not parsed out of it."""

    text: str
    suffix: str | None = None  # what follows the gap: fill-in-the-middle


class Tokens(Struct, frozen=True, tag="tokens"):
    """A prompt as token ids of the model's vocabulary."""

    tokens: list[int]


Prompt = Messages | Text | Tokens


class JsonSchema(Struct, frozen=True, tag="json_schema"):
    """The answer is JSON of this schema. `{"type": "object"}` stands for any object."""

    schema: dict[str, Any]


class Regex(Struct, frozen=True, tag="regex"):
    """The whole answer matches this regular expression (Rust's syntax)."""

    pattern: str


class Grammar(Struct, frozen=True, tag="grammar"):
    """The answer follows this grammar, in llama.cpp's GBNF or in llguidance's Lark."""

    text: str


Constraint = JsonSchema | Regex | Grammar


class ToolChoice(Struct, frozen=True):
    """Which of the prompt's tools may, or must, be called."""

    mode: Literal["none", "auto", "required"] = "auto"
    names: list[str] = []  # only these; empty: all
    parallel: bool = True  # more than one call in one answer


class Generate(Struct, frozen=True, tag="generate"):
    """One generation. `id` is unique on its socket; the WorkerProcess sets it."""

    prompt: Prompt
    sampling: Sampling = Sampling()
    max_tokens: int | None = None  # None: to the end of the context
    stop: list[str] = []
    stop_tokens: list[int] = []
    constraint: Constraint | None = None  # of the content; reasoning before it is free
    tool_choice: ToolChoice = ToolChoice()
    reasoning_budget: int | None = None  # tokens of reasoning at most; None: no limit
    logprobs: int | None = None  # alternatives told with each token; None: no log-probabilities
    echo: bool = False  # the prompt's text comes first, as a Delta of no tokens
    group: str = ""  # prefixes are shared inside a group only
    adapters: tuple[tuple[str, float], ...] = ()  # names and scales; each name once
    id: int = 0


class Embed(Struct, frozen=True, tag="embed"):
    """Vectors for these inputs → `Embedded`. An "embeddings" model only."""

    inputs: list[Text | Tokens]
    dimensions: int | None = None  # only so many of the first; None: all
    id: int = 0


class Rerank(Struct, frozen=True, tag="rerank"):
    """How well each document answers the query → `Ranked`. A "rerank" model only."""

    query: str
    documents: list[str]
    id: int = 0


class Tokenize(Struct, frozen=True, tag="tokenize"):
    """The tokens of a text → `Tokenized`."""

    text: str
    add_special: bool = False  # BOS and the like
    parse_special: bool = True  # control tokens may be spelt
    id: int = 0


class Detokenize(Struct, frozen=True, tag="detokenize"):
    """The text of tokens → `Detokenized`."""

    tokens: list[int]
    id: int = 0


class Render(Struct, frozen=True, tag="render"):
    """The prompt that a conversation becomes, without running it → `Rendered`."""

    prompt: Messages
    id: int = 0


Call = Embed | Rerank | Tokenize | Detokenize | Render
Request = Generate | Call


class Load(Struct, frozen=True, tag="load"):
    """First frame: load this and say `Ready`."""

    launch: Launch


class Adapters(Struct, frozen=True, tag="adapters"):
    """The adapters that are wanted now; others leave once nobody uses them. A "chat" model only."""

    adapters: tuple[AdapterFile, ...]


class Abort(Struct, frozen=True, tag="abort"):
    """The client of `id` is gone; an unknown id is no error."""

    id: int


ToWorker = Load | Adapters | Generate | Embed | Rerank | Tokenize | Detokenize | Render | Abort


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


class CallDelta(Struct, frozen=True, omit_defaults=True):
    """A piece of a tool call. The first one of each `index` carries id and name, once."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""  # a piece of the JSON text


class Likelihood(Struct, frozen=True, omit_defaults=True):
    """A token and the natural logarithm of its probability, before temperature."""

    token: int
    text: bytes
    logprob: float


class Chosen(Likelihood, frozen=True):
    """The token that was chosen, and the likeliest ones at its place, likeliest first."""

    top: list[Likelihood] = []


class Delta(Struct, frozen=True, tag="delta", omit_defaults=True):
    """A piece of the answer: whole UTF-8 characters, never a part of a stop string.

    The kinds follow each other as reasoning, content, calls; one piece may hold several. Where no
    grammar holds a model to its calls, it may write content after them.
    """

    id: int
    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = []
    logprobs: list[Chosen] = []  # of the content's tokens, if they were asked for
    n_tokens: int = 1  # tokens that this piece stands for


class Finish(Struct, frozen=True, tag="finish"):
    """The regular end of a generation."""

    id: int
    reason: Literal["stop", "length", "tool_calls"]
    usage: Usage = Usage()
    timings: Timings = Timings()
    stop: str | None = None  # the stop string that was met


class Failed(Struct, frozen=True, tag="failed"):
    """The irregular end of a generation: `code` is one of `errors.py`."""

    id: int
    code: str
    message: str
    param: str | None = None


class Embedded(Struct, frozen=True, tag="embedded"):
    """One vector for each input: float32, little-endian, of length 1 (Euclid)."""

    id: int
    vectors: list[bytes]
    prompt_tokens: int


class Ranked(Struct, frozen=True, tag="ranked"):
    """One score for each document, in their order; larger is better."""

    id: int
    scores: list[float]
    prompt_tokens: int


class Tokenized(Struct, frozen=True, tag="tokenized"):
    """Ids, and the bytes of each."""

    id: int
    tokens: list[int]
    pieces: list[bytes]


class Detokenized(Struct, frozen=True, tag="detokenized"):
    """Bytes that are no UTF-8 became U+FFFD."""

    id: int
    text: str


class Rendered(Struct, frozen=True, tag="rendered"):
    """The prompt's text and how many tokens it has."""

    id: int
    text: str
    n_tokens: int


Reply = Embedded | Ranked | Tokenized | Detokenized | Rendered
LAST = (Finish, Failed, Embedded, Ranked, Tokenized, Detokenized, Rendered)
Event = Started | Delta | Finish | Failed | Embedded | Ranked | Tokenized | Detokenized | Rendered


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
    buffers: dict[str, int] = {}  # bytes by backend and use: "CPU_Mapped model", "CPU KV"


class LoadFailed(Struct, frozen=True, tag="load_failed"):
    """The load failed; the exit code says whether trying again makes sense."""

    message: str


class Step(Struct, frozen=True, tag="step"):
    """All events of one engine step."""

    events: list[Event]


class AdapterState(Struct, frozen=True):
    """How a wanted adapter is; `error` says why one failed."""

    name: str
    state: Literal["loading", "ready", "failed"]
    error: str = ""


class Stats(Struct, frozen=True, tag="stats"):
    """Sent every second while the worker lives. `progress` counts engine steps.

    `pulse` differs whenever a step went on, where an engine can tell; it is no measure of anything.
    """

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
    guessed_tokens: int = 0  # by speculation
    guessed_right: int = 0
    restored_tokens: int = 0  # of prefixes that came back from the disk
    threads: int = 0  # that write answers
    threads_batch: int = 0  # that read prompts
    threads_reason: str = ""  # why one of them is less than the launch allows
    adapters: tuple[AdapterState, ...] = ()
    pulse: int = 0


ToDaemon = Loading | Ready | LoadFailed | Step | Stats
