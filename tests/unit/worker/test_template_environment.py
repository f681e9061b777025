from __future__ import annotations

import time
from typing import Any

import jinja2
import jinja2.exceptions
import pytest

from edged.worker.template.environment import ENVIRONMENT, LARGEST, Limited, render


def run(source: str, limit_s: float = 0.1, **variables: Any) -> str:
    return render(ENVIRONMENT.from_string(source), variables, limit_s)


def test_blocks_leave_no_white_space() -> None:
    assert run(
        "{% for m in l %}\n  {% if true %}\n{{ m }}\n  {% endif %}\n{% endfor %}", l=[1]
    ) == ("1\n")


# ── what transformers adds ──


def test_tojson_keeps_characters_and_order_as_they_are() -> None:
    assert run("{{ x | tojson }}", x="<é> & '中'") == "\"<é> & '中'\""
    assert (
        run("{{ x | tojson }}", x={"b": 1, "a": [2, None, True]})
        == '{"b": 1, "a": [2, null, true]}'
    )
    assert run("{{ x | tojson(indent=2) }}", x={"b": 1, "a": [2]}) == (
        '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}'
    )
    assert run("{{ x | tojson(sort_keys=true, separators=(',', ':')) }}", x={"b": 1, "a": 2}) == (
        '{"a":2,"b":1}'
    )
    assert run("{{ 'é' | tojson(ensure_ascii=true) }}") == '"\\u00e9"'


def test_tojson_takes_what_map_returns() -> None:
    assert run("{{ x | map(attribute='f') | tojson }}", x=[{"f": 1}, {"f": 2}]) == "[1, 2]"


def test_safe_does_not_make_html_of_what_follows() -> None:
    assert run("{{ 'a'|safe + x }}", x="<b>") == "a<b>"


def test_loop_controls_generation_block_and_clock_exist() -> None:
    source = (
        "{% for m in l %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{% set n = m %}{{ n }}{% endgeneration %}{{ n }}{% endfor %}"
        "{{ strftime_now('%Y') | length }}"
    )
    assert run(source, l=["a", "b"]) == "a4", "what a generation block sets stays in it"


def test_refusal_of_the_template_carries_its_words() -> None:
    with pytest.raises(jinja2.TemplateError, match="roles must alternate"):
        run("{{ raise_exception('roles must alternate') }}")


def test_lists_of_a_template_may_grow() -> None:
    source = "{% set l = [] %}{% set _ = l.append(1) %}{{ l }}"
    assert run(source) + run(source) == "[1][1]"


def test_metered_loops_know_what_loops_know() -> None:
    source = (
        "{% for x in l %}{{ loop.index }}/{{ loop.length }}{{ loop.previtem }}{{ loop.last }} "
        "{% endfor %}{% for x in [] %}{% else %}none{% endfor %}"
        "{% for x in l | map('upper') if x != 'A' %}{{ x }}{{ loop.length }}{% endfor %}"
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}"
    )
    assert run(source, l=["a", "b"]) == "1/2False 2/2aTrue noneB1a1"


def test_recursive_loops_work() -> None:
    tree = [{"n": 1, "c": [{"n": 2, "c": []}]}, {"n": 3, "c": []}]
    assert run("{% for x in t recursive %}{{ x.n }}({{ loop(x.c) }}){% endfor %}", t=tree) == (
        "1(2())3()"
    )


def test_names_on_dicts_and_namespaces_mean_what_jinja_means() -> None:
    source = (
        "{{ d.a }}{{ d.items() | list }}{{ d.none is defined }}{{ d.get('a') }}"
        "{% set ns = namespace(x=1, self=2) %}{% set ns.y = ns.x + 1 %}{{ ns.y }}{{ ns.self }}"
        "{{ ns.z is defined }}"
    )
    assert run(source, d={"a": 1}) == "1[('a', 1)]False122False"


def test_operators_mean_what_jinja_means() -> None:
    assert run("{{ 'a' ~ 1 ~ none }}{{ 1 + 2 }}{{ 'b' * 3 }}{{ 'x%sx' % 3 }}{{ 2 ** 3 }}") == (
        "a1None3bbbx3x8"
    )


# ── the sandbox ──


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace(_x=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% set ns = namespace() %}{{ ns.__init__.__globals__ }}",
        "{{ dict.__subclasses__() }}",
        "{{ dict.mro() }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ '{0.__class__.__mro__}'.format('').__class__.x }}",
        "{{ range(10 ** 7) | list }}",
        "{{ lipsum() }}",
    ],
)
def test_sandbox_holds(source: str) -> None:
    with pytest.raises((jinja2.TemplateError, OverflowError)):
        run(source)


# ── limits ──

_GROW = "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = GROWN %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in l %}{% set _ = l.append(1) %}{% endfor %}",
        "{% set l = [1] %}{% for i in range(99) %}{% set _ = l.extend(l) %}{% endfor %}",
        "{% for i in [1, 2] recursive %}{{ loop(range(9)) if loop.depth < 99 }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        _GROW.replace("GROWN", "ns.s + ns.s"),
        _GROW.replace("GROWN", "ns.s ~ ns.s"),
        _GROW.replace("GROWN", "ns.s.replace('a', 'aa')"),
        _GROW.replace("GROWN", "ns.s | replace('a', 'aa')"),
        _GROW.replace("'ab'", "7").replace("GROWN", "ns.s * ns.s"),
        _GROW.replace("ns.s = GROWN %}", "ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
        "{% set s = 'a' * 10000000 %}{{ s }}{{ s }}{{ s }}{{ s }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a' * 10 ** 12 }}",
        "{{ [1] * 10 ** 12 }}",
        "{{ 'a'.ljust(10 ** 12) }}",
        "{{ 'a' | center(10 ** 12) }}",
        "{{ 'a\n' * 9 | indent(10 ** 12) }}",
        "{{ [1] | batch(10 ** 12, 0) | list }}",
        "{{ [1] | tojson(indent=10 ** 12) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
    ],
)
def test_template_that_would_not_end_or_would_take_all_memory_is_stopped(source: str) -> None:
    started = time.thread_time()
    with pytest.raises(Limited):
        run(source, l=[1])
    assert time.thread_time() - started < 60, "a template that is not stopped runs for hours"


def test_recursion_without_end_is_an_error_of_python() -> None:
    with pytest.raises(RecursionError):
        run("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")


def test_what_is_large_and_bounded_passes() -> None:
    text = "x" * (LARGEST // 8)
    assert run("{% for i in l %}{{ i }}{% endfor %}", l=[text] * 4, limit_s=10.0) == text * 4
