import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edged.config.lines import key_lines
from tests.unit.toml_text import to_toml


def test_lines_of_every_form_of_key() -> None:
    text = '''# comment [x]
a = 1
"b c".d = "x # no comment"
[table]   # here
e = [ # there
  1, 2.5, "]",
  { f = 3 },
]
g = """
h = 1
"""
i = { j = 1, k = { l = 'x' } }
[ "quoted \\u0041" . m ]
n = 1979-05-27 07:32:00
[[many]]
o = 1
[[many]]
p = \'\'\'
]\'\'\'\'\'
q = -inf
'''
    tomllib.loads(text)
    lines = key_lines(text)
    assert lines == {
        ("a",): 2,
        ("b c",): 3,
        ("b c", "d"): 3,
        ("table",): 4,
        ("table", "e"): 5,
        ("table", "e", "f"): 7,
        ("table", "g"): 9,
        ("table", "i"): 12,
        ("table", "i", "j"): 12,
        ("table", "i", "k"): 12,
        ("table", "i", "k", "l"): 12,
        ("quoted A",): 13,
        ("quoted A", "m"): 13,
        ("quoted A", "m", "n"): 14,
        ("many",): 15,
        ("many", "o"): 16,
        ("many", "p"): 18,
        ("many", "q"): 20,
    }


keys = st.text(min_size=1, max_size=5).filter(lambda text: text.isprintable())
leaves = st.one_of(
    st.text(max_size=8), st.integers(-9, 9), st.booleans(), st.lists(st.text(max_size=3))
)
tables = st.recursive(
    st.dictionaries(keys, leaves, max_size=3),
    lambda inner: st.dictionaries(keys, st.one_of(leaves, inner), max_size=3),
    max_leaves=6,
)


def paths(table: dict[str, Any], at: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found = set()
    for key, value in table.items():
        found.add((*at, key))
        if isinstance(value, dict):
            found |= paths(value, (*at, key))
    return {path[:5] for path in found}


@given(tables)
def test_every_key_has_a_line(table: dict[str, Any]) -> None:
    text = to_toml(table)
    assert tomllib.loads(text) == table
    lines = key_lines(text)
    assert set(lines) == paths(table)
    assert all(1 <= line <= text.count("\n") for line in lines.values())
