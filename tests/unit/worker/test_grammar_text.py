"""What clients write as constraints, as llguidance reads it: byte by byte, without a model."""

from __future__ import annotations

from typing import Any

import llguidance
import numpy as np
import pytest

from edged.errors import InvalidRequest
from edged.protocol import Constraint, Grammar, JsonSchema, Regex
from edged.worker.llamacpp.constrain import Bans
from edged.worker.llamacpp.grammar_text import is_gbnf, text_of


class Bytes(llguidance.TokenizerWrapper):
    """A vocabulary of the bytes and an end."""

    def __init__(self) -> None:
        self.eos_token_id = 256
        self.bos_token_id = None
        self.tokens = [bytes([i]) for i in range(256)] + [b"<end>"]
        self.special_token_ids = [256]
        self.is_tokenizer_wrapper = True

    def __call__(self, text: Any) -> list[int]:
        return list(text.encode())


BYTES = llguidance.LLTokenizer(Bytes(), n_vocab=257)


def accepts(constraint: Constraint, text: str, around: str | None = None) -> bool:
    matcher = llguidance.LLMatcher(BYTES, text_of(constraint, around), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('root ::= "a" | "b" # more\n', ["a", "b"], ["c", "ab"]),
        ('# a comment\nroot ::= a-b aB\na-b ::= "x"\naB ::= "y"', ["xy"], ["yx"]),
        ('root ::= start Root\nstart ::= "x"\nRoot ::= "y"', ["xy"], ["yx"]),
        ('root ::= "\\u00e9\\x41" [\\u4e00-\\u9fff]+', ["éA你好"], ["eA你", "éA"]),
        ('root ::= "\\x22\\"\\n\\x5d" [\\]] [^\\]]+', ['""\n]]abc'], ['""\n]]]']),
        ('root ::= "\\U0001F98A"{2,3}', ["🦊🦊", "🦊🦊🦊"], ["🦊"]),
        ('root ::= "#" [#"]+ "é"', ['##"é'], ["#é"]),
        ('root ::= (\n  "yes"\n  | "no"\n) "."?', ["yes.", "no"], ["."]),
        ('start: "a" | B\nB: /[0-9]+/', ["a", "12"], ["b"]),
        ('// Lark\nstart: item+\nitem: "x::=y"', ["x::=y"], ["x"]),
    ],
)
def test_grammar_in_either_notation(grammar: str, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert accepts(Grammar(grammar), text), text
    for text in bad:
        assert not accepts(Grammar(grammar), text), text


def test_notations_are_told_apart() -> None:
    assert is_gbnf('root ::= "a"')
    assert is_gbnf('start ::= root\nroot ::= "a"')
    assert not is_gbnf('start: "a ::= b"')
    assert not is_gbnf('# root ::= x\nstart: "a"')


@pytest.mark.parametrize(
    "text",
    ['{"a": [1, {"b": null}]}', '{"a":1}', '{\n  "a": [\n    1,\n    2\n  ]\n}', "{}"],
)
def test_json_may_be_laid_out(text: str) -> None:
    assert accepts(JsonSchema({"type": "object"}), text)


@pytest.mark.parametrize("text", ["[1]", " {}", "{} ", "{  }", '{"a": \n\n1}'])
def test_white_space_has_an_end(text: str) -> None:
    assert not accepts(JsonSchema({"type": "object"}), text)


@pytest.mark.parametrize(
    "constraint", [JsonSchema({"type": "object"}), Regex("[{}]+"), Grammar('root ::= "{" "}"')]
)
def test_constraint_may_stand_inside_another_grammar(constraint: Constraint) -> None:
    around = 'start: T? @content\nT: "<t>" /[a-z]*/ "</t>" /\\n{0,2}/'
    assert accepts(constraint, "<t>hm</t>\n{}", around)
    assert accepts(constraint, "{}", around)
    assert not accepts(constraint, "<t>hm</t>", around)


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= \\ud800",
        'root ::= "a',
        "other ::= [a]",
        "root ::= a\na ::= b",
        "root ::= " + "(" * 9999,
    ],
)
def test_gbnf_that_is_none_is_refused(grammar: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        text_of(Grammar(grammar))
    assert caught.value.param == "grammar"


@pytest.mark.parametrize("n_tokens", [1, 31, 32, 33, 4096, 5000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_mask_bans_what_its_bits_do_not_allow(n_tokens: int, share: float) -> None:
    dice = np.random.default_rng(n_tokens)
    allowed = dice.random(n_tokens) < share
    bans = Bans(n_tokens)
    padded = np.zeros(len(bans.bits) * 32, np.uint8)
    padded[:n_tokens] = allowed
    bans.bits[:] = np.packbits(padded, bitorder="little").view(np.uint32)
    row = dice.normal(size=n_tokens).astype(np.float32)
    expected = np.where(allowed, row, -np.inf)
    bans.put(row)
    assert (row == expected).all()
