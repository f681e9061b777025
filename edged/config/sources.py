"""Where the files of a model come from: the line of `gguf` or `safetensors`, taken apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from msgspec import Struct

from edged.config.values import BadValueError, show, suggestion

Scheme = Literal["builtin", "file", "hf", "ms", "https"]


class Source(Struct, frozen=True):
    """Where files come from: `builtin:NAME`, `file:PATH`, `hf:ORG/REPO[:QUANT][@REV]`, …."""

    scheme: Scheme
    spec: str  # what follows the colon

    def __str__(self) -> str:
        return f"{self.scheme}:{self.spec}"


_BUILTIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HUB = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?::(?P<choice>[\w.+-]+(?:/[\w.+-]+)*))?(?:@(?P<revision>[\w./-]{1,128}))?",
    re.ASCII,
)
_MOST_CHOICE = 200
_SHA256 = re.compile(r"sha256=[0-9a-fA-F]{64}")
_SOURCE_FORMS = (
    '"builtin:NAME", "file:/PATH", "hf:ORG/REPO:QUANT", "ms:ORG/REPO:QUANT" or "https://…"'
)


def source(value: Any) -> Source:
    """Parse the line of `gguf` or `safetensors`."""
    if not isinstance(value, str):
        raise BadValueError(_must_be(_SOURCE_FORMS, value))
    scheme, colon, spec = value.partition(":")
    if not colon or scheme not in get_args(Scheme):
        hint = ""
        if value.startswith(("/", "./", "../", "~")):
            hint = f'; did you mean "file:{value}"?'
        elif scheme == "http":
            hint = "; plain http is not fetched"
        elif colon:
            hint = suggestion(scheme, get_args(Scheme))
        elif _HUB.fullmatch(value):
            hint = f'; did you mean "hf:{value}"?'
        raise BadValueError(_must_be(_SOURCE_FORMS, value) + hint)
    if not spec.isprintable() or spec != spec.strip():
        raise BadValueError(_must_be("printable text without blanks around it", value))
    _SPEC_CHECKS[scheme](value, spec)
    return Source(scheme, spec)  # type: ignore[arg-type]


class HubSpec(Struct, frozen=True):
    """What follows `hf:` or `ms:`."""

    repository: str
    choice: str | None  # a quantisation, a file, or `auto`
    revision: str | None


def hub_spec(source: Source) -> HubSpec:
    """Take the line of a hub apart."""
    match = _HUB.fullmatch(source.spec)
    assert match, source
    return HubSpec(match["repository"], match["choice"], match["revision"])


def _check_builtin(value: str, spec: str) -> None:
    if not _BUILTIN.fullmatch(spec):
        raise BadValueError(
            _must_be('a name after "builtin:", such as "builtin:edge-guide"', value)
        )


def _check_file(value: str, spec: str) -> None:
    if not spec or spec.startswith("~") or (spec.startswith("//") and not spec.startswith("///")):
        wanted = 'a path after "file:", such as "file:/srv/models/my.gguf"; ~ is not expanded'
        raise BadValueError(_must_be(wanted, value))


def _check_hub(value: str, spec: str) -> None:
    match = _HUB.fullmatch(spec)
    if not match or len(match["choice"] or "") > _MOST_CHOICE:
        scheme = value.partition(":")[0]
        wanted = f'of the form "{scheme}:ORG/REPO[:QUANT or FILE][@REVISION]"'
        raise BadValueError(_must_be(wanted, value))


def _check_https(value: str, spec: str) -> None:
    try:
        url = urlsplit(value)
        good = spec.startswith("//") and bool(url.hostname) and url.port != 0 and len(url.path) > 1
    except ValueError:
        good = False
    if not good or " " in value:
        raise BadValueError(_must_be('a whole URL such as "https://example.org/my.gguf"', value))
    if url.username is not None:
        raise BadValueError(_must_be("a URL without user and password", value))
    if url.fragment and not _SHA256.fullmatch(url.fragment):
        wanted = 'a URL that ends with nothing or "#sha256=" and 64 hexadecimal digits'
        raise BadValueError(_must_be(wanted, value))


_SPEC_CHECKS: dict[str, Callable[[str, str], None]] = {
    "builtin": _check_builtin,
    "file": _check_file,
    "hf": _check_hub,
    "ms": _check_hub,
    "https": _check_https,
}


def _must_be(wanted: str, value: Any) -> str:
    return f"must be {wanted}, not {show(value)}"
