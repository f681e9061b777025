"""Guesses from the text itself."""

from hypothesis import given
from hypothesis import strategies as st

from edged.worker.llamacpp.lookup import Lookup


def test_guess_is_what_came_after_these_tokens_the_last_time() -> None:
    tokens = [1, 2, 3, 4, 5, 9, 1, 2, 3]
    assert Lookup(tokens).guess(3) == [4, 5, 9]
    assert Lookup(tokens).guess(1) == [4]


def test_newest_place_counts() -> None:
    assert Lookup([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3]).guess(2) == [8, 1]


def test_new_run_has_no_guess() -> None:
    assert Lookup([1, 2, 3, 4, 5]).guess(4) == []
    assert Lookup([1, 2]).guess(4) == []


def test_text_that_repeats_itself_is_gone_on_with() -> None:
    assert Lookup([5, 5, 5, 5, 5]).guess(4) == [5]


def test_list_may_grow_between_guesses() -> None:
    tokens = [1, 2, 3, 4]
    lookup = Lookup(tokens)
    assert lookup.guess(2) == []
    tokens += [9, 1, 2, 3]
    assert lookup.guess(2) == [4, 9]


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 8), st.integers(0, 40))
def test_guess_is_the_same_however_often_it_was_asked(tokens: list[int], n: int, step: int) -> None:
    grown: list[int] = []
    lookup = Lookup(grown)
    for i in range(0, len(tokens), max(1, step)):
        grown += tokens[i : i + max(1, step)]
        lookup.guess(n)
    assert lookup.guess(n) == Lookup(list(tokens)).guess(n) == by_search(tokens, n)


def by_search(tokens: list[int], n: int) -> list[int]:
    run = tokens[-3:]
    places = [i for i in range(3, len(tokens)) if tokens[i - 3 : i] == run]
    return tokens[places[-1] : places[-1] + n] if places and len(run) == 3 else []
