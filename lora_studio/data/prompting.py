"""A person's own Jinja template over the columns of a row.

A recipe may come from a stranger, so a template is code that is not trusted: it runs in Jinja's
sandbox, consists only of what `ALLOWED` and `FILTERS` list, and is refused what would take much
time or memory. Each loop step, each text put together and each filter is paid for out of one
budget per row, which no machine's speed changes.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from lora_studio.data.examples import Record
from lora_studio.data.turns import UnusableRowError, is_blank
from lora_studio.errors import DatasetError

if TYPE_CHECKING:
    from jinja2 import Template, nodes
    from jinja2.runtime import Context
    from jinja2.sandbox import SandboxedEnvironment

ROW = "row"
"""The name that all cells go by, for columns whose names are no identifiers."""
LONGEST_TEMPLATE = 20_000
LONGEST_REASON = 500
LONGEST_TEXT = 4_000_000
MOST_STEPS = 10_000
BUDGET = 40_000_000
LARGEST_NUMBER = 10**15
# So many rows that take too much time or memory are enough to know.
MOST_EXHAUSTING = 3
# A step and a call cost this much beside the characters they handle.
STEP = 100


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


ALLOWED = _words(
    "Add And Assign Call Compare Concat CondExpr Const Dict Div Filter FloorDiv For Getattr",
    "Getitem If Keyword List Mod Mul Name Neg Not Operand Or Output Pair Pos Slice Sub",
    "TemplateData Test Tuple",
)
"""What a template may consist of, as Jinja names it; lists and mappings of constants only."""
FILTERS = _words(
    "abs capitalize count d default first float int last length list lower max min reverse sort",
    "string title trim truncate unique upper wordcount",
)
"""Jinja's own filters that may be used; ours are join, replace, round and tojson."""
METHODS = _words(
    "capitalize count endswith find get isalpha isdigit items keys lower lstrip removeprefix",
    "removesuffix rstrip split splitlines startswith strip title upper values",
)
"""Methods of texts, lists and mappings that may be called."""
FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)

# Under a name that no template can write.
_SPENT = " spent"


class _LimitError(ValueError):
    """A template would take too much time or memory."""


@dataclass(slots=True)
class _Spent:
    """What a template has used up on one row."""

    steps: int = 0
    cost: int = 0

    def pay(self, characters: int) -> None:
        self.cost += STEP + characters
        if self.cost > BUDGET:
            raise _LimitError("the template does too much")

    def each(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield a loop's items, paying for each."""
        for item in items:
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise _LimitError(f"more than {MOST_STEPS} loop steps")
            self.pay(0)
            yield item


def render(source: str, row: Mapping[str, Any]) -> str:
    """Return what the template makes of a row; every column is a name, and all are in `row`.

    Raises:
        UnusableRowError: If it fails on this row.
        DatasetError: If the template is broken.
    """
    try:
        return _render(source, row)
    except _failures() as error:
        raise UnusableRowError("data.skip_template_error") from error


def check(source: str, head: Sequence[Record], *, columns: Sequence[str], file: str) -> None:
    """Try a template on the first rows of a file.

    Raises:
        DatasetError: If the template is broken, or if it fails on every row; also if it takes too
            much on several before it works on one.
    """
    failed: tuple[int, Exception] | None = None
    exhausting = 0
    for record in head:
        cells = record.value if isinstance(record.value, dict) else {}
        try:
            _render(source, {**dict.fromkeys(columns), **cells})
        except _failures() as error:
            failed = failed or (record.number, error)
            exhausting += isinstance(error, _LimitError)
            if exhausting >= MOST_EXHAUSTING:
                break
        else:
            return
    if failed:
        row, reason = failed
        raise DatasetError(
            "data.template_fails",
            file=file,
            row=row,
            reason=str(reason)[:LONGEST_REASON],
            columns=", ".join(columns),
        ) from reason


def columns_used(source: str, columns: Iterable[str]) -> frozenset[str]:
    """Return the columns that a template mentions, as names or as texts in `row["…"]`.

    Raises:
        DatasetError: If the template is broken.
    """
    from jinja2 import nodes

    tree = _parsed(source)
    used = {node.name for node in tree.find_all(nodes.Name)}
    used |= {node.attr for node in tree.find_all(nodes.Getattr)}
    used |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return frozenset(column for column in columns if {column, _composed(column)} & used)


def _render(source: str, row: Mapping[str, Any]) -> str:
    cells = {str(name): None if is_blank(cell) else cell for name, cell in row.items()}
    named = {_composed(name): cell for name, cell in cells.items()}
    pieces: list[str] = []
    size = 0
    for piece in _compiled(source).generate({**named, **cells, ROW: cells, _SPENT: _Spent()}):
        size += len(piece)
        if size > LONGEST_TEXT:
            raise _LimitError(f"more than {LONGEST_TEXT} characters")
        pieces.append(piece)
    return "".join(pieces)


def _composed(name: str) -> str:
    """Return a name as keyboards write it; files from a Mac may hold Hangul taken apart."""
    return unicodedata.normalize("NFC", name)


def _failures() -> tuple[type[Exception], ...]:
    from jinja2.exceptions import TemplateError

    return (TemplateError, *FAILURES)


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    """Return the template ready to run, its loops and joined texts made to pay."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    class Paying(NodeTransformer):
        def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - Jinja calls it by name
            self.generic_visit(node)
            node.iter = filtered(node.iter, "each")
            return node

        def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
            self.generic_visit(node)
            return filtered(nodes.List(node.nodes, lineno=node.lineno), "join")

    def filtered(node: nodes.Node, name: str) -> nodes.Filter:
        return nodes.Filter(cast("nodes.Expr", node), name, [], [], None, None, lineno=node.lineno)

    tree = _parsed(source)
    with _translated():
        return _environment().from_string(Paying().visit(tree))


def _parsed(source: str) -> nodes.Template:
    """Return the template's tree.

    Raises:
        DatasetError: For a mistake in it, or for what is not allowed in it.
    """
    from jinja2 import nodes

    if len(source) > LONGEST_TEMPLATE:
        raise DatasetError("data.template_too_long", length=len(source), most=LONGEST_TEMPLATE)
    with _translated():
        tree = _environment().parse(source)
        odd = next((node for node in tree.find_all(nodes.Node) if not _is_allowed(node)), None)
    if odd is not None:
        word = type(odd).__name__.lower()
        raise DatasetError("data.template_forbidden", line=odd.lineno, word=word)
    return tree


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what Jinja or Python find wrong with a template into a DatasetError."""
    from jinja2.exceptions import TemplateSyntaxError

    try:
        yield
    except TemplateSyntaxError as error:
        reason = (error.message or "")[:LONGEST_REASON]
        raise DatasetError("data.template_syntax", line=error.lineno, reason=reason) from error
    except (SyntaxError, MemoryError, *FAILURES) as error:  # nested too deep for Python
        reason = str(error)[:LONGEST_REASON]
        raise DatasetError("data.template_syntax", line=1, reason=reason) from error


def _is_allowed(node: nodes.Node) -> bool:
    """Tell whether a node may stand in a template; lists of lists could grow without end."""
    from jinja2 import nodes

    if isinstance(node, nodes.For) and node.recursive:
        return False
    is_target = isinstance(node, nodes.Tuple) and node.ctx == "store"
    if isinstance(node, nodes.List | nodes.Tuple | nodes.Dict) and not is_target:
        return all(isinstance(part, nodes.Const | nodes.Pair) for part in node.iter_child_nodes())
    if isinstance(node, nodes.Pair):
        return isinstance(node.value, nodes.Const)
    return type(node).__name__ in ALLOWED


@lru_cache(maxsize=1)
def _environment() -> SandboxedEnvironment:
    from jinja2 import StrictUndefined, pass_context
    from jinja2.sandbox import SandboxedEnvironment

    class Environment(SandboxedEnvironment):
        intercepted_binops = frozenset("+*%")

        def is_safe_callable(self, obj: Any) -> bool:
            owner = getattr(obj, "__self__", None)
            is_method = isinstance(owner, str | list | dict) and obj.__name__ in METHODS
            return obj is _range or is_method

        def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
            _pay(context, getattr(obj, "__self__", None))
            return super().call(context, obj, *args, **kwargs)

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            _pay_for(_spent(context), operator, left, right)
            return self.binop_table[operator](left, right)

    environment = Environment(
        undefined=StrictUndefined,
        finalize=pass_context(_shown),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals = {"range": _range}
    environment.filters = {
        **{name: pass_context(_paid(name)) for name in FILTERS},
        "each": pass_context(lambda context, items: _spent(context).each(items)),
        "join": pass_context(_join),
        "replace": pass_context(_replace),
        "round": _round,
        "tojson": pass_context(
            lambda context, value: _shown(
                context, json.dumps(value, ensure_ascii=False, default=str)
            )
        ),
    }
    return environment


def _paid(name: str) -> Callable[..., Any]:
    """Return one of Jinja's filters, made to pay for what goes in and comes out."""
    from jinja2.sandbox import SandboxedEnvironment

    original = SandboxedEnvironment()

    def paid(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        _pay(context, value)
        result = original.call_filter(name, value, args, kwargs, context=context)
        _pay(context, result)
        return result

    return paid


def _spent(context: Context) -> _Spent:
    return cast("_Spent", context.resolve(_SPENT))


def _pay(context: Context, value: Any) -> None:
    size = len(value) if isinstance(value, str | list | dict) else 0
    _spent(context).pay(size)


def _pay_for(spent: _Spent, operator: str, left: Any, right: Any) -> None:
    """Pay for what `left operator right` will be; only numbers, texts and lists are joined."""
    numbers = [value for value in (left, right) if isinstance(value, int | float)]
    if len(numbers) == 2:
        if any(abs(number) > LARGEST_NUMBER for number in numbers):
            raise _LimitError(f"a number above {LARGEST_NUMBER}")
        spent.pay(0)
    elif operator == "+":
        spent.pay(len(left) + len(right))
    elif operator == "*" and numbers:
        spent.pay(len(right if left is numbers[0] else left) * max(int(numbers[0]), 0))
    else:
        raise TypeError(f"{operator} takes numbers")


def _shown(context: Context, value: Any) -> str:
    """Return a value as the text it has in the output; what is empty shows nothing."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = str(value)
    _pay(context, text)
    return text


def _join(context: Context, items: Iterable[Any], separator: str = "") -> str:
    spent = _spent(context)
    pieces = []
    for item in items:
        spent.pay(len(separator))
        pieces.append(_shown(context, item))
    return separator.join(pieces)


def _replace(context: Context, text: Any, old: str, new: str) -> str:
    text = _shown(context, text)
    _spent(context).pay(text.count(old) * len(new))
    return text.replace(old, new)


def _round(number: float, digits: int = 0) -> float:
    return round(number, max(min(digits, 15), 0))


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MOST_STEPS:
        raise _LimitError(f"a range of more than {MOST_STEPS} numbers")
    return numbers
