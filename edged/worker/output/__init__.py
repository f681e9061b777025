"""Raw bytes of a generation to what a client may see: reasoning, content, tool calls.

The room's face. `find` picks the family of a model from its chat template, `Output` is the text
state of one generation, `lark` and `lark_after_trigger` write its calls as grammars.
"""

from edged.worker.output.formats import FORMATS, SHOWN_TOKENS, find
from edged.worker.output.grammar import lark, lark_after_trigger
from edged.worker.output.parser import NOTHING, Output, Piece
from edged.worker.output.syntax import Format, Marker, Trigger

__all__ = [
    "FORMATS",
    "NOTHING",
    "SHOWN_TOKENS",
    "Format",
    "Marker",
    "Output",
    "Piece",
    "Trigger",
    "find",
    "lark",
    "lark_after_trigger",
]
