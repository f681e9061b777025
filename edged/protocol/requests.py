"""Daemon → worker: what is to be loaded, generated, answered, given up."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from edged.protocol.launch import AdapterFile, Launch


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
