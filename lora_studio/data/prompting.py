"""A person's own Jinja template over the columns of a row.

A recipe may come from a stranger, so a template is code that is not trusted: it runs in `sandbox`,
consists only of what is listed there, and is refused what would take much time or memory.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from lora_studio.data.examples import Record
from lora_studio.data.sandbox import FAILURES, SPENT, LimitError, Spent, environment, is_allowed
from lora_studio.data.turns import UnusableRowError, is_blank
from lora_studio.errors import DatasetError

if TYPE_CHECKING:
    from jinja2 import Template, nodes

ROW = "row"
"""The name that all cells go by, for columns whose names are no identifiers."""
LONGEST_TEMPLATE = 20_000
LONGEST_REASON = 500
LONGEST_TEXT = 4_000_000
# So many rows that take too much time or memory are enough to know.
MOST_EXHAUSTING = 3


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
            exhausting += isinstance(error, LimitError)
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
            columns=list(columns),
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
    for piece in _compiled(source).generate({**named, **cells, ROW: cells, SPENT: Spent()}):
        size += len(piece)
        if size > LONGEST_TEXT:
            raise LimitError(f"more than {LONGEST_TEXT} characters")
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
        return environment().from_string(Paying().visit(tree))


def _parsed(source: str) -> nodes.Template:
    """Return the template's tree.

    Raises:
        DatasetError: For a mistake in it, or for what is not allowed in it.
    """
    from jinja2 import nodes

    if len(source) > LONGEST_TEMPLATE:
        raise DatasetError("data.template_too_long", length=len(source), most=LONGEST_TEMPLATE)
    with _translated():
        tree = environment().parse(source)
        odd = next((node for node in tree.find_all(nodes.Node) if not is_allowed(node)), None)
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
