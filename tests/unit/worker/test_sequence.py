from __future__ import annotations

from edged.worker.llamacpp.sequence import Sequence

END = {0}


def test_end_token_stops() -> None:
    assert Sequence([1, 2], context=10).append(0, END) == "stop"


def test_max_tokens_ends_with_length() -> None:
    sequence = Sequence([1], context=10, max_tokens=2)
    assert sequence.append(5, END) is None
    assert sequence.append(5, END) == "length"


def test_context_ends_with_length_when_full() -> None:
    sequence = Sequence([1, 2], context=4)
    assert sequence.append(5, END) is None
    assert sequence.append(5, END) == "length"
    assert len(sequence.tokens) == 4


def test_end_token_at_the_limit_is_a_stop() -> None:
    assert Sequence([1], context=10, max_tokens=1).append(0, END) == "stop"


def test_decoding_means_one_token_is_missing() -> None:
    sequence = Sequence([1, 2, 3], context=10)
    assert not sequence.decoding
    sequence.n_computed = 3
    sequence.append(4, END)
    assert sequence.decoding
    assert sequence.n_generated == 1
