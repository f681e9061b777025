"""Worker → daemon: answers piece by piece, and how the worker is."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


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
# `type(event) in LAST`: isinstance looks at each for half a µs, and asks for every token.
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
