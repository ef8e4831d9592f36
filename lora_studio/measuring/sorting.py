"""How well texts are sorted into classes; the measures are those of `training.classifying`."""

from __future__ import annotations

from collections.abc import Sequence

from lora_studio.measuring.measurements import Classes, Compared
from lora_studio.measuring.statistics import compared

Confusion = list[list[int]]


def sorted_by(
    true: Sequence[int], predicted: Sequence[tuple[int, int]], labels: Sequence[str]
) -> Classes:
    """Compare how base and adapter sort.

    Args:
        true: Each text's class.
        predicted: What the base, and the adapter, took it for.
        labels: Names of the classes, by number.
    """
    tables = [confusion(true, [pair[side] for pair in predicted], len(labels)) for side in (0, 1)]
    right = [
        [float(pair[side] == label) for pair, label in zip(predicted, true, strict=True)]
        for side in (0, 1)
    ]
    return Classes(
        rows=len(true),
        labels=tuple(labels),
        accuracy=compared(*right),
        f1=Compared(base=macro_f1(tables[0]), adapter=macro_f1(tables[1])),
        confusion=tuple(tuple(row) for row in tables[1]),
    )


def confusion(true: Sequence[int], predicted: Sequence[int], classes: int) -> Confusion:
    """Return how often each class (row) was taken for each (column)."""
    table = [[0] * classes for _ in range(classes)]
    for label, said in zip(true, predicted, strict=True):
        table[label][said] += 1
    return table


def macro_f1(table: Confusion) -> float:
    """Return the mean F1 of the classes that stand in the rows or were predicted.

    F1 = 2·right / (rows of the class + times it was predicted).
    """
    scores = []
    for at, row in enumerate(table):
        named = sum(row) + sum(line[at] for line in table)
        if named:
            scores.append(2 * row[at] / named)
    return sum(scores) / len(scores)
