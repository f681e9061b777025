"""Which sequence already holds the beginning of a prompt: a radix tree over their tokens.

Pure. Holders are whatever the caller puts in (the scheduler: `Sequence`s, running or resident).
Groups are isolated from each other: a match never crosses them, so that nobody can learn from
latency or `cached_tokens` what another key has asked.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Holder = TypeVar("Holder", bound=Hashable)


class _Node(Generic[Holder]):
    """A run of tokens; `holders` are all whose tokens pass through its end."""

    __slots__ = ("children", "holders", "parent", "run")

    def __init__(self, run: list[int], parent: _Node[Holder] | None) -> None:
        self.run = run
        self.parent = parent
        self.children: dict[int, _Node[Holder]] = {}
        self.holders: set[Holder] = set()


class Prefixes(Generic[Holder]):
    """Radix trees, one a group. One owner, not thread-safe."""

    def __init__(self) -> None:
        self._roots: dict[str, _Node[Holder]] = {}
        self._leaves: dict[Holder, tuple[str, _Node[Holder]]] = {}

    def __contains__(self, holder: Holder) -> bool:
        return holder in self._leaves

    def put(self, holder: Holder, group: str, tokens: list[int]) -> None:
        """Let `holder` stand for `tokens`; what it stood for before is forgotten."""
        self.remove(holder)
        node = self._roots.setdefault(group, _Node([], None))
        at = 0
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                child = _Node(tokens[at:], node)
                node.children[tokens[at]] = child
            else:
                same = _common(child.run, tokens, at)
                if same < len(child.run):
                    child = self._split(child, same)
            child.holders.add(holder)
            at += len(child.run)
            node = child
        if node.parent is not None:
            self._leaves[holder] = (group, node)
        elif not node.children:
            del self._roots[group]

    def _split(self, node: _Node[Holder], at: int) -> _Node[Holder]:
        """Cut `node` after `at` tokens and return the upper half."""
        parent = node.parent
        assert parent is not None
        upper: _Node[Holder] = _Node(node.run[:at], parent)
        upper.holders = set(node.holders)
        parent.children[upper.run[0]] = upper
        node.run = node.run[at:]
        node.parent = upper
        upper.children[node.run[0]] = node
        # A holder that ended at the end of `node` still does: `node` keeps its identity.
        return upper

    def remove(self, holder: Holder) -> None:
        """Forget `holder`; an unknown one is no error."""
        found = self._leaves.pop(holder, None)
        if found is None:
            return
        group, node = found
        while node.parent is not None:
            node.holders.discard(holder)
            parent = node.parent
            if not node.holders:
                del parent.children[node.run[0]]
            node = parent
        if not node.children:
            del self._roots[group]

    def match(self, group: str, tokens: list[int]) -> Iterator[tuple[int, set[Holder]]]:
        """Yield (matched length, holders of at least that many tokens), growing in length.

        The sets are the tree's own: read them, and do not change the tree meanwhile.
        """
        node = self._roots.get(group)
        at = 0
        while node is not None and at < len(tokens):
            node = node.children.get(tokens[at])
            if node is None:
                return
            same = _common(node.run, tokens, at)
            at += same
            yield at, node.holders
            if same < len(node.run):
                return


def _common(run: list[int], tokens: list[int], start: int) -> int:
    """Length of the common beginning of `run` and `tokens[start:]`."""
    n = min(len(run), len(tokens) - start)
    if run[:n] == tokens[start : start + n]:
        return n
    for i in range(n):
        if run[i] != tokens[start + i]:
            return i
    return n
