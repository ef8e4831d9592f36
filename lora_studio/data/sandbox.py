"""Where templates of strangers run: Jinja's sandbox, with a list of what may be used and a budget.

Each loop step, each text put together and each filter is paid for out of one budget per row, which
no machine's speed changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from jinja2 import nodes
    from jinja2.runtime import Context
    from jinja2.sandbox import SandboxedEnvironment

MOST_STEPS = 10_000
BUDGET = 40_000_000
LARGEST_NUMBER = 10**15
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
SPENT = " spent"


class LimitError(ValueError):
    """A template would take too much time or memory."""


@dataclass(slots=True)
class Spent:
    """What a template has used up on one row."""

    steps: int = 0
    cost: int = 0

    def pay(self, characters: int) -> None:
        """Pay for one step over so many characters.

        Raises:
            LimitError: If the budget is used up.
        """
        self.cost += STEP + characters
        if self.cost > BUDGET:
            raise LimitError("the template does too much")

    def each(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield a loop's items, paying for each."""
        for item in items:
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise LimitError(f"more than {MOST_STEPS} loop steps")
            self.pay(0)
            yield item


def is_allowed(node: nodes.Node) -> bool:
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
def environment() -> SandboxedEnvironment:
    """Return where templates run; their rows hold a `Spent` under the name `SPENT`."""
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

    sandbox = Environment(
        undefined=StrictUndefined,
        finalize=pass_context(_shown),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sandbox.globals = {"range": _range}
    sandbox.filters = {
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
    return sandbox


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


def _spent(context: Context) -> Spent:
    return cast("Spent", context.resolve(SPENT))


def _pay(context: Context, value: Any) -> None:
    size = len(value) if isinstance(value, str | list | dict) else 0
    _spent(context).pay(size)


def _pay_for(spent: Spent, operator: str, left: Any, right: Any) -> None:
    """Pay for what `left operator right` will be; only numbers, texts and lists are joined."""
    numbers = [value for value in (left, right) if isinstance(value, int | float)]
    if len(numbers) == 2:
        if any(abs(number) > LARGEST_NUMBER for number in numbers):
            raise LimitError(f"a number above {LARGEST_NUMBER}")
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
        raise LimitError(f"a range of more than {MOST_STEPS} numbers")
    return numbers
