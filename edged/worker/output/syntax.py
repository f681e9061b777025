"""The ways in which models write reasoning and tool calls, as data.

A row of `formats.py` is made of these. `calls.py` reads what they say, `grammar.py` writes it.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct


class Marker(Struct, frozen=True):
    """The tags around the reasoning at the start of an answer.

    `ends`: tags that end it as well and are read on, for models that forget the closing one.
    """

    opening: str
    closing: str
    ends: tuple[str, ...] = ()


THINK = Marker("<think>", "</think>")
MARKERS = (THINK, Marker("<thinking>", "</thinking>"), Marker("[THINK]", "[/THINK]"))


# ── how calls are written ──


class Objects(Struct, frozen=True):
    """JSON objects with a key for the name and one for the arguments, between two tags.

    `listed`: in a JSON list. `opening` "": the answer starts with the object, without a tag.
    `separator`: between two objects that have no tags.
    """

    opening: str
    closing: str = ""
    listed: bool = False
    name: str = "name"
    arguments: str = "arguments"
    id: str = ""  # the key of the id, "" for none
    id_last: bool = False  # after the arguments: they wait for it
    separator: str = ""
    before: str = ""  # white space that the model writes after the opening tag
    after: str = ""  # … and before the closing one


class Named(Struct, frozen=True):
    """The name in plain text, then the arguments as JSON.

    `call name between arguments end`, all of them between `opening` and `closing` where the
    family has a section around its calls. `number`: what parts the name from the call's number,
    both together are the id. `id`: the tag of an id after the name.
    """

    call: str
    between: str
    end: str = ""
    opening: str = ""
    closing: str = ""
    prefix: str = ""  # of the name; a part of the id
    number: str = ""
    id: str = ""  # may stand between the name and `between`, with a text of the model's
    writes_id: bool = False


class Parameters(Struct, frozen=True):
    """One pair of tags a parameter; values are text and become JSON by the tool's schema.

    `opening function name name_end (parameter key key_end value value_end)* end closing`; without
    `name_end` the name ends at white space or the next tag. `line` is what the model writes between
    the tags, `pad` what it writes around a value that does not belong to it.
    """

    opening: str
    function: str
    name_end: str
    parameter: str
    key_end: str
    value_end: str
    end: str = ""
    closing: str = ""
    line: str = "\n"
    pad: str = ""
    cdata: bool = False


class Pythonic(Struct, frozen=True):
    """Python calls with keyword arguments: `name(key="value", …)`."""

    opening: str
    closing: str
    before: str = "["
    after: str = "]"
    separator: str = ", "


class Harmony(Struct, frozen=True):
    """Messages on channels, the recipient of a call in the header."""


Syntax = Objects | Named | Parameters | Pythonic | Harmony


class Format(Struct, frozen=True):
    """One family. The first of `calls` is what grammars write; all of them are read."""

    name: str
    calls: tuple[Syntax, ...]
    # Any of these sets of texts in the template's source tells the family.
    template: tuple[tuple[str, ...], ...] = ()
    reasoning: tuple[Marker, ...] = ()  # beside MARKERS
    dropped: tuple[str, ...] = ()  # tags around the content that say nothing
    around: tuple[str, str] = ("", "")  # tags at the start and the end of the whole content
    given: str = ""  # the beginning of a tag that the prompt ends with
    thinks: Marker | None = None  # how this template's model reasons; set by `find`
    id_length: int = 0  # an id is so many letters and digits; 0: "call_" and 24 of them

    @property
    def markers(self) -> tuple[Marker, ...]:
        """All tags of reasoning that an answer may start with."""
        return self.reasoning + MARKERS


class Trigger(Struct, frozen=True):
    """The beginning of a call that an answer has written: what follows can be constrained.

    `text` is one of the syntax's tags, the last thing before `Output.triggered`. With `tool` the
    name of the call is written as well, and its arguments follow at once.
    """

    syntax: Syntax
    text: str
    tool: str = ""


_TAG = re.compile(r"<[^<>\s=\"']+>|\[/?[A-Z_]+\]")


def tags(part: Struct) -> frozenset[str]:
    """Return the tags in the texts of a row, or of a part of one, that a vocabulary may have."""
    found: set[str] = set()
    for value in msgspec.structs.asdict(part).values():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str):
                found.update(_TAG.findall(item))
            elif isinstance(item, Struct):
                found |= tags(item)
    return frozenset(found)


def split_tags(text: str) -> list[str]:
    """Return `text` in parts, each of which is a single tag or has none."""
    parts, at = [], 0
    for match in _TAG.finditer(text):
        parts += [text[at : match.start()], match[0]]
        at = match.end()
    return [part for part in [*parts, text[at:]] if part]
