from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edged.worker.llamacpp.prefixes import Prefixes

RUNS = st.lists(st.integers(0, 2), min_size=1, max_size=8)
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["put", "remove"]), st.integers(0, 5), st.sampled_from("ab"), RUNS),
    max_size=25,
)


def common(a: list[int], b: list[int]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


@given(ACTIONS, RUNS, st.sampled_from("ab"))
def test_match_agrees_with_comparing_every_holder(
    actions: list[tuple[str, int, str, list[int]]], wanted: list[int], group: str
) -> None:
    tree: Prefixes[int] = Prefixes()
    model: dict[int, tuple[str, list[int]]] = {}
    for action, holder, of, tokens in actions:
        if action == "put":
            tree.put(holder, of, tokens)
            model[holder] = (of, tokens)
        else:
            tree.remove(holder)
            model.pop(holder, None)
    found = {n: set(holders) for n, holders in tree.match(group, wanted)}
    lengths = {h: common(tokens, wanted) for h, (of, tokens) in model.items() if of == group}
    assert max(found, default=0) == max(lengths.values(), default=0)
    for n, holders in found.items():
        assert holders == {h for h, length in lengths.items() if length >= n}
    # Every holder shows up at its own full length.
    for holder, length in lengths.items():
        assert max((n for n, holders in found.items() if holder in holders), default=0) == length
    assert {h for h in range(6) if h in tree} == set(model)


def test_tree_of_removed_holders_is_empty() -> None:
    tree: Prefixes[str] = Prefixes()
    tree.put("x", "", [1, 2, 3])
    tree.put("y", "", [1, 2, 4])
    tree.remove("x")
    tree.remove("y")
    assert not tree._roots
    assert list(tree.match("", [1, 2, 3])) == []
