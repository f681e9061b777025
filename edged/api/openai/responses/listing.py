"""What a query string says, and lists cut into pages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Self

from edged import errors
from edged.api.openai.envelope import encode
from edged.api.openai.responses.items import bare
from edged.api.openai.responses.schema import Item

_MOST = 100
_USUAL = 20
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
# What is there anyway, or never: a response keeps what was asked for when it was made.
_INCLUDED = "message.input_image.image_url"


def pick(query: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise for names that a path does not know, and for an `include` that comes too late."""
    for name in query:
        if name.removesuffix("[]") not in known:
            raise errors.InvalidRequest(
                f"`{name[:50]}` is not a parameter of this path; it knows "
                + ", ".join(f"`{each}`" for each in sorted(known)),
                param=name[:50],
            )
    asked = [value for name in ("include", "include[]") for value in _all(query, name)]
    if any(value != _INCLUDED for value in asked):
        raise errors.UnsupportedParameter(
            "`include` is honoured when a response is created; what it asked for is kept with it",
            param="include",
        )


def _all(query: Any, name: str) -> list[str]:
    return list(query.getall(name, []))


def flag(query: Mapping[str, Any], name: str) -> bool:
    """Return a truth value; raises InvalidRequest."""
    said = query.get(name, "false")
    if said not in _FLAGS:
        raise errors.InvalidRequest(f"`{name}`: expected `true` or `false`", param=name)
    return _FLAGS[said]


def number(query: Mapping[str, Any], name: str, *, low: int, high: int = 2**31 - 1) -> int | None:
    """Return a whole number from low to high, None if it is not there; raises InvalidRequest."""
    said = query.get(name)
    if said is None:
        return None
    digits = said.isascii() and said.isdigit() and len(said) <= len(str(high))
    if not digits or not low <= int(said) <= high:
        raise errors.InvalidRequest(
            f"`{name}`: expected a whole number from {low} to {high}", param=name
        )
    return int(said)


class Page(NamedTuple):
    """Which part of a list is wanted. `after` and `before` are ids, in the wanted order."""

    limit: int
    descending: bool
    after: str | None
    before: str | None

    @classmethod
    def of(cls, query: Mapping[str, Any]) -> Self:
        """Read a query string; raises InvalidRequest."""
        pick(query, {"limit", "order", "after", "before", "include"})
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise errors.InvalidRequest("`order`: expected `asc` or `desc`", param="order")
        limit = number(query, "limit", low=1, high=_MOST)
        return cls(
            limit=_USUAL if limit is None else limit,
            descending=order == "desc",
            after=query.get("after"),
            before=query.get("before"),
        )

    def cut(self, items: list[Item]) -> bytes:
        """Return the page of these items, which are in the order of the conversation.

        Raises InvalidRequest when `after` or `before` is none of them.
        """
        found = [bare(item) for item in items]
        if self.descending:
            found.reverse()
        ids = [item["id"] for item in found]
        first = self._place(ids, "after") + 1 if self.after is not None else 0
        end = self._place(ids, "before") if self.before is not None else len(found)
        wanted = found[first:end]
        # With `before` alone the page is the one that ends there.
        backwards = self.before is not None and self.after is None
        page = wanted[-self.limit :] if backwards else wanted[: self.limit]
        return encode(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else "",
                "last_id": page[-1]["id"] if page else "",
                "has_more": len(page) < len(wanted),
            }
        )

    def _place(self, ids: list[str], name: str) -> int:
        wanted = getattr(self, name)
        if wanted not in ids:
            raise errors.InvalidRequest(
                f"`{name}`: no item of this list has the id '{wanted[:100]}'", param=name
            )
        return ids.index(wanted)
