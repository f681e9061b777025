"""Where chat templates run: jinja2's sandbox with what transformers adds to it, and with limits.

A template comes with the model's file: foreign code. The sandbox keeps it away from Python; it
may change only what it is given, which is a copy made for one rendering. Three limits keep it from
holding a thread or the memory for ever (`Meter`, `LARGEST`): the processor time of a rendering is
looked at in every turn of a loop and every call, so that neither nested loops nor recursion run
on; every value that a template can make grow (sums, products, joined texts, what calls and
filters return) and the output are bounded; and functions whose work is set by a number are given
small numbers only. What is left is one single operation of the interpreter on values of a bounded
size; should one ever hold the worker, its daemon sees a worker that does not answer and ends it.
"""

from __future__ import annotations

import functools
import json
import re
import time
import types
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.exceptions
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

LIMIT_S = 10.0  # processor time of one rendering; a hundred messages take some milliseconds
LARGEST = 32 << 20  # characters of a text, items of a list; more than any context holds
_LARGEST_INT_BITS = 4096
_LARGEST_NUMBER = 10_000  # what a filter may be told: widths, counts, indents
_TURNS_A_TICK = _TICKS_A_LOOK = 64
_SIZED = frozenset({str, list, tuple, dict})
_DICT_CALLS = frozenset({"get", "items", "keys", "values"})
_DICT_NAMES = frozenset(dir(dict))
_LOOP_NAMES = frozenset({"first", "last", "index", "index0", "length", "previtem", "nextitem"})
_METER = "\0meter"  # names that no template can spell
_METERED = "\0metered"
_WIDE = re.compile(
    r"[%{:][^a-zA-Z]{0,40}?(?:\*|\d{5})"
)  # a field of a format, wide or of any width


class Limited(jinja2.TemplateError):
    """A rendering that went over a limit."""


class Meter:
    """The time of one rendering, in the thread that renders."""

    __slots__ = ("_end_s", "_ticks")

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._end_s = time.thread_time() + limit_s
        self._ticks = 0

    def tick(self) -> None:
        """Count a loop, some of its turns, or a call; raises Limited when the time is over."""
        self._ticks += 1
        if self._ticks % _TICKS_A_LOOK == 0 and time.thread_time() > self._end_s:
            raise Limited(f"it did not end within {LIMIT_S:g} s of processor time")


def render(template: jinja2.Template, variables: dict[str, Any], limit_s: float = LIMIT_S) -> str:
    """Return the text; raises whatever the template raises, and Limited."""
    return template.render(variables | {_METER: Meter(limit_s)})


def _bounded(value: Any) -> Any:
    if type(value) in _SIZED and len(value) > LARGEST:
        raise Limited(f"it made a value of more than {LARGEST} characters or items")
    return value


def _join(parts: Iterable[str]) -> str:
    texts = parts if isinstance(parts, list) else list(parts)
    if sum(map(len, texts)) > LARGEST:
        raise Limited(f"it made a text of more than {LARGEST} characters")
    return "".join(texts)


class _Metered:
    """What a loop goes through, counted."""

    __slots__ = ("_meter", "_over")

    def __init__(self, over: Iterable[Any], meter: Meter) -> None:
        self._over = over
        self._meter = meter

    def __len__(self) -> int:
        return len(self._over)  # type: ignore[arg-type]  # without a length: TypeError, as jinja2 wants

    def __iter__(self) -> Iterator[Any]:
        tick = self._meter.tick
        for n, each in enumerate(self._over):
            if n % _TURNS_A_TICK == 0:
                tick()
            yield each


@jinja2.pass_context
def _metered(context: jinja2.runtime.Context, over: Iterable[Any]) -> _Metered:
    return _Metered(over, context.parent[_METER])


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    """Puts the meter into loops, and the bound into `~`."""

    def visit_Template(  # noqa: N802 - jinja2's names
        self, node: jinja2.nodes.Template, frame: jinja2.compiler.Frame | None = None
    ) -> None:
        for loop in list(node.find_all(jinja2.nodes.For)):
            loop.iter = jinja2.nodes.Filter(
                loop.iter, _METERED, [], [], None, None, lineno=loop.lineno
            )
        super().visit_Template(node, frame)

    def visit_Concat(  # noqa: N802
        self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame
    ) -> None:
        self.write("environment.concat([")
        for each in node.nodes:
            self.write("str(")
            self.visit(each, frame)
            self.write("), ")
        self.write("])")


class Environment(jinja2.sandbox.SandboxedEnvironment):
    """The sandbox with its limits. Unlike transformers', templates may append to lists.

    Templates that do exist (Kimi K2's), and what they change is theirs.
    """

    code_generator_class = _CodeGenerator
    concat = staticmethod(_join)
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return what `obj.attribute` means; the plain cases first, most of a template's work."""
        kind = type(obj)
        if kind is dict:
            if attribute in _DICT_CALLS:
                return getattr(obj, attribute)
            if attribute not in _DICT_NAMES:
                return (
                    obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
                )
        elif kind is _Namespace:
            if attribute in vars(obj):
                return vars(obj)[attribute]
        elif kind is jinja2.runtime.LoopContext and attribute in _LOOP_NAMES:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call_binop(
        self,
        context: jinja2.runtime.Context,  # noqa: ARG002 - jinja2's signature
        operator: str,
        left: Any,
        right: Any,
    ) -> Any:
        """Compute `left operator right` within the bounds."""
        if operator == "+":
            return _bounded(left + right)
        if operator == "%":
            _check_format(left)
            return _bounded(left % right)
        if operator == "*":
            return left * right if _product_fits(left, right) else _too_large("product")
        return left**right if _power_fits(left, right) else _too_large("power")

    def call(
        self, context: jinja2.runtime.Context, function: Any, /, *args: Any, **kwargs: Any
    ) -> Any:
        """Call what a template calls: counted, and with small numbers only."""
        meter = context.parent[_METER]
        meter.tick()
        kind = type(function)
        if kind is jinja2.runtime.Macro:  # its own and a container's methods: nothing to check
            return _bounded(function(context.eval_ctx, *args, **_without_scopes(kwargs)))
        if kind is types.BuiltinMethodType and type(function.__self__) in (dict, list):
            result = function(*args, **_without_scopes(kwargs))
            _bounded(function.__self__)
            return result
        if kind is jinja2.runtime.LoopContext and args:
            args = (_Metered(args[0], meter), *args[1:])
        else:
            owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
            if isinstance(owner, str):  # a method of a text: ljust(n), format(…)
                if function.__name__ in ("format", "format_map"):
                    _check_format(owner)
                _check_numbers(args, kwargs)
        return _bounded(super().call(context, function, *args, **kwargs))


def _without_scopes(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return keywords without those that jinja2's compiler adds to every call inside loops."""
    kwargs.pop("_loop_vars", None)
    kwargs.pop("_block_vars", None)
    return kwargs


def _product_fits(left: Any, right: Any) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length() <= _LARGEST_INT_BITS
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(times, int):
            return len(value) * times <= LARGEST
    return True


def _power_fits(left: Any, right: Any) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() * abs(right) <= _LARGEST_INT_BITS
    return True


def _too_large(what: str) -> Any:
    raise Limited(f"it asks for a {what} that is too large")


def _check_format(text: Any) -> None:
    if isinstance(text, str) and _WIDE.search(text):
        raise Limited(f"it formats with {text!r:.80}")


def _check_numbers(args: Iterable[Any], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
            raise Limited(f"it calls a function with the number {value:.3g}")


def _with_small_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # also keeps jinja2's mark for what the filter wants to be given
    def call(*args: Any, **kwargs: Any) -> Any:
        _check_numbers(args, kwargs)
        return _bounded(function(*args, **kwargs))

    return call


def _format(text: Any, *args: Any, **kwargs: Any) -> Any:
    _check_format(text)
    return _bounded(jinja2.filters.do_format(text, *args, **kwargs))


# ── what transformers adds (utils/chat_template_utils.py of 5.23) ──


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks training targets; here it is a scope only."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Return the body as it stands."""
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=lineno)


class _Namespace(jinja2.utils.Namespace):
    """`namespace()` without names that begin with an underscore; quicker than jinja2's own."""

    __getattribute__ = object.__getattribute__

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a keyword
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        vars(args[0]).update(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        vars(self)[name] = value


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no {name!r}")


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: Any = "") -> None:
    raise jinja2.TemplateError(str(message))


def _listed(value: Any) -> Any:
    if isinstance(value, Iterator):  # what `map` and `select` return; llama-server takes them too
        return list(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


_compact = json.JSONEncoder(ensure_ascii=False, default=_listed).encode  # what nearly all ask for


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which models have never seen in training.
    if not (ensure_ascii or indent is not None or separators or sort_keys):
        return _compact(value)
    if isinstance(indent, int):
        _check_numbers((indent,), {})
    return json.dumps(
        value,
        default=_listed,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - the box's own time, as transformers has it


def _environment() -> Environment:
    environment = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    for name in ("batch", "center", "indent", "join", "replace", "slice", "wordwrap"):
        environment.filters[name] = _with_small_numbers(environment.filters[name])
    # `safe` makes a text that escapes for HTML whatever is added to it, which nobody wants here.
    environment.filters.update(format=_format, safe=str, tojson=_to_json)
    environment.filters[_METERED] = _metered
    del environment.globals["lipsum"]
    environment.globals.update(
        dict=_dict,
        namespace=_Namespace,
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
    )
    return environment


ENVIRONMENT = _environment()
