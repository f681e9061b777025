"""The chart of `edged bench` as what it is: a document with places and heights."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.cli.bench.chart import Column, Panel, draw, ticks

NAME = "{http://www.w3.org/2000/svg}"
PANEL = Panel(
    "Decode",
    "tokens per second",
    (Column("1 client", 50, 40, 60, "50"), Column("2 clients", 100, 100, 100, "100", "50 each")),
)


def parsed(document: str) -> ET.Element:
    return ET.fromstring(document)  # noqa: S314 - our own


def words(root: ET.Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{NAME}text")]


def boxes(root: ET.Element, kind: str) -> list[dict[str, float]]:
    return [
        {name: float(each.attrib[name]) for name in ("x", "y", "width", "height")}
        for each in root.iter(f"{NAME}rect")
        if each.attrib.get("class") == kind
    ]


def test_columns_are_as_high_as_their_values_and_stand_on_one_line() -> None:
    low, high = boxes(parsed(draw("m", [], [PANEL])), "column")
    assert high["height"] == pytest.approx(2 * low["height"], abs=0.2)
    assert low["y"] + low["height"] == pytest.approx(high["y"] + high["height"], abs=0.2)
    assert low["x"] + low["width"] < high["x"]


def test_axis_is_to_the_scale_of_the_columns() -> None:
    root = parsed(draw("m", [], [PANEL]))
    [axis] = [e for e in root.iter(f"{NAME}line") if e.attrib["class"] == "axis"]
    zero = float(axis.attrib["y1"])
    grid = [float(e.attrib["y1"]) for e in root.iter(f"{NAME}line") if e is not axis]
    marks = ticks(100)[1:]
    _, high = boxes(root, "column")
    for y, mark in zip(grid, marks, strict=True):
        assert (zero - y) / high["height"] == pytest.approx(mark / 100, abs=0.002)
    assert {f"{mark:g}" for mark in marks} <= set(words(root))


def test_spread_is_drawn_where_there_is_one() -> None:
    root = parsed(draw("m", [], [PANEL]))
    assert len([e for e in root.iter(f"{NAME}path") if e.attrib["class"] == "spread"]) == 1


def test_everything_said_is_shown_once() -> None:
    shown = words(parsed(draw("title", ["about"], [PANEL, PANEL], ["note"], ["caution"])))
    for once in ("title", "about", "note", "caution"):
        assert shown.count(once) == 1
    for twice in ("Decode", "tokens per second", "1 client", "50 each"):
        assert shown.count(twice) == 2


def test_odd_names_do_not_break_the_document() -> None:
    name = 'a<b> & "c" ' + "x" * 500
    root = parsed(draw(name, [name * 3], [PANEL], cautions=[name]))
    assert root.find(f"{NAME}title") is not None
    assert any(line.startswith('a<b> & "c"') for line in words(root))


def test_everything_lies_on_the_picture() -> None:
    many = tuple(Column(f"{n} clients", n, n / 2, n * 2, str(n), "each") for n in range(1, 9))
    root = parsed(draw("m", ["line " * 80], [Panel("a", "b", many)] * 2, ["n"], ["c " * 200]))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for box in boxes(root, "column"):
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width
        assert 0 <= box["y"] <= box["y"] + box["height"] <= height
    for text in root.iter(f"{NAME}text"):
        assert 0 <= float(text.attrib["x"]) <= width
        assert 0 <= float(text.attrib["y"]) <= height
        if text.attrib.get("class") in {"quiet", "caution"}:
            assert len(text.text or "") * 6 < width


def test_nothing_measured_is_an_empty_panel() -> None:
    nothing = Panel("Decode", "", (Column("1 client", 0, 0, 0, "0"),))
    assert boxes(parsed(draw("m", [], [nothing, Panel("x", "", ())])), "column")[0]["height"] == 0


@given(st.floats(1e-6, 1e9))
def test_ticks_are_a_few_round_numbers_in_equal_steps(highest: float) -> None:
    marks = ticks(highest)
    step = marks[1]
    assert marks[0] == 0
    assert 3 <= len(marks) <= 7
    assert marks == pytest.approx([i * step for i in range(len(marks))])
    assert marks[-1] <= highest * 1.000001
    assert highest < marks[-1] + step * 1.000001
    mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-9)
    assert any(mantissa == pytest.approx(good, rel=1e-6) for good in (1, 2, 2.5, 5))
