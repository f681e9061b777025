"""In which line each key of a TOML text stands; `tomllib` does not tell.

Only for a text that `tomllib` has accepted: nothing is validated here.
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str, ...]

# deeper keys are unknown keys of a known table: the table's own line serves
_MAX_DEPTH = 6

_TOKEN = re.compile(
    r'''
      (?P<string> """ (?: \\. | [^\\] )*? """ "{0,2}
                | \'\'\' .*? \'\'\' '{0,2}
                | " (?: \\. | [^\\"\n] )* "
                | ' [^'\n]* ' )
    | (?P<skip>   \#[^\n]* | [ \t\r]+ )
    | (?P<mark>   [\[\]{}=,.\n] )
    | (?P<bare>   [^\s\[\]{}=,."'\#]+ )
    ''',
    re.VERBOSE | re.DOTALL,
)


def key_lines(text: str) -> dict[Path, int]:
    """Return path → line (from 1) of the first mention of every table and key."""
    return _Index(text).lines


class _Index:
    """Walks the tokens once, statement by statement."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._tokens: list[tuple[str, str]] = []
        self._token_lines: list[int] = []
        line = 1
        for match in _TOKEN.finditer(text):
            token = match[0]
            if match.lastgroup != "skip":
                self._tokens.append((match.lastgroup or "", token))
                self._token_lines.append(line)
            line += token.count("\n")
        self._tokens.append(("mark", "\n"))
        self._token_lines.append(line)
        self._at = 0
        self._statements()

    def _statements(self) -> None:
        table: Path = ()
        while self._at < len(self._tokens):
            if self._skip("\n"):
                continue
            if self._skip("["):
                self._skip("[")  # [[array of tables]]
                table = self._key((), end="]")
                self._skip("]")
            else:
                self._assignment(table)

    def _assignment(self, table: Path) -> None:
        self._value(self._key(table, end="="))

    def _key(self, table: Path, end: str) -> Path:
        """Take a dotted key and its `end`; note the line of each of its parts."""
        path, line = table, self._token_lines[self._at]
        while not self._skip(end):
            kind, word = self._tokens[self._at]
            self._at += 1
            if kind == "mark":  # the dot
                continue
            part = next(iter(tomllib.loads(f"{word}=0"))) if kind == "string" else word
            if len(path) < _MAX_DEPTH:
                path = (*path, part)
                self.lines.setdefault(path, line)
        return path

    def _value(self, path: Path) -> None:
        if self._skip("{"):
            while not self._skip("}"):
                if not (self._skip(",") or self._skip("\n")):
                    self._assignment(path)
        elif self._skip("["):
            while not self._skip("]"):
                if not (self._skip(",") or self._skip("\n")):
                    self._value(path)
        else:  # a scalar; `1.5` and dates are several tokens
            while self._tokens[self._at] not in _SCALAR_ENDS:
                self._at += 1

    def _skip(self, mark: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == ("mark", mark):
            self._at += 1
            return True
        return False


_SCALAR_ENDS = {("mark", "\n"), ("mark", ","), ("mark", "]"), ("mark", "}")}
