"""Which rows of a text classification are learned from, which are held out, and their classes.

As `layout` does for conversations and texts, from the index of a store and a few settings alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_studio.data import labels
from lora_studio.data.checking.findings import Findings
from lora_studio.data.layout import Classes, Layout, Leftovers, Part, leave_out, report
from lora_studio.data.splitting import Numbers, hold_out_of_classes
from lora_studio.data.store import Index, Store
from lora_studio.errors import DatasetError
from lora_studio.recipe import DataSpec

LEAST_CLASSES = 2
FEW_ROWS = 5
"""A class with fewer rows to learn from is told of."""
SHOWN_CLASSES = 5


def lay_out(
    store: Store, spec: DataSpec, *, seed: int, findings: Findings, leftovers: Leftovers
) -> Layout:
    """Cut, leave out and hold out rows, each class alike.

    Args:
        store: The encoded rows, each with its label.
        spec: Lengths, fractions, and what to do about findings.
        seed: Chooses what is held out.
        findings: Told of texts with different labels, and of classes with few rows.
        leftovers: Rows left out before; those left out here are added.

    Raises:
        DatasetError: If there are too many classes, or just one.
    """
    index, names = store.index, store.meta["labels"]
    columns = _columns(store)
    labels.refuse_many(names, rows=len(index), columns=columns)
    rows = _agreeing(store, spec, findings, leftovers)
    part = _cut(store, rows, spec, leftovers)
    is_held = hold_out_of_classes(
        index.document[part.row], index.label[part.row], fraction=spec.eval_fraction, seed=seed
    )
    is_kept = ~_rare(store, part, is_held, spec, findings, leftovers)
    classes = _classes(index, part.row[is_kept], names, columns)
    leftovers.listed.sort(key=lambda row: (store.order(row.file), row.number))
    return Layout(part.where(is_kept & ~is_held), part.where(is_kept & is_held), leftovers, classes)


def counts(store: Store, layout: Layout) -> tuple[tuple[str, int, int], ...]:
    """Return name, training rows and held-out rows of each class, in the order of their ids."""
    classes = layout.classes
    trained, held = (
        np.bincount(classes.ids[store.index.label[part.row]], minlength=len(classes.names)).tolist()
        for part in (layout.train, layout.evaluation)
    )
    return tuple(zip(classes.names, trained, held, strict=True))


def firsts(store: Store, layout: Layout) -> list[int]:
    """Return a row of each class, held-out ones first."""
    rows = np.concatenate([layout.evaluation.row, layout.train.row])
    first = np.unique(store.index.label[rows], return_index=True)[1]
    chosen: list[int] = rows[np.sort(first)].tolist()
    return chosen


def _agreeing(store: Store, spec: DataSpec, findings: Findings, leftovers: Leftovers) -> Numbers:
    """Return the rows to use: all, or only those whose text has one label."""
    index = store.index
    labels_in_all = len(store.meta["labels"])
    of_text = np.unique(index.content, return_inverse=True)[1]
    pairs = np.unique(of_text * labels_in_all + index.label)
    is_torn = (np.bincount(pairs // labels_in_all) > 1)[of_text]
    torn = np.flatnonzero(is_torn)
    report(store, torn, "label_conflicts", findings, lambda row: _sides(store, row))
    if spec.checks.label_conflicts != "skip":
        return np.arange(len(index))
    leave_out(store, torn, "data.skip_label_conflicts", leftovers)
    return np.flatnonzero(~is_torn)


def _sides(store: Store, row: int) -> str:
    """Return a text behind the labels that it has."""
    index = store.index
    found = np.unique(index.label[index.content == index.content[row]])
    names = [store.meta["labels"][label] for label in found.tolist()[:SHOWN_CLASSES]]
    return f"{' / '.join(names)}: {store.excerpt(row)}"


def _cut(store: Store, rows: Numbers, spec: DataSpec, leftovers: Leftovers) -> Part:
    length = store.index.length[rows]
    is_over = length > spec.max_length
    if spec.truncation == "drop":
        leave_out(store, rows[is_over], "data.skip_too_long", leftovers)
        rows, length = rows[~is_over], length[~is_over]
    start = np.zeros_like(length)
    if spec.truncation == "start":
        start = np.maximum(length - spec.max_length, 0)
    stop = np.minimum(start + spec.max_length, length)
    return Part(rows, start, stop, start)


def _rare(
    store: Store,
    part: Part,
    is_held: Numbers,
    spec: DataSpec,
    findings: Findings,
    leftovers: Leftovers,
) -> Numbers:
    """Tell which rows are left out because their class has too few to learn from."""
    names, label = store.meta["labels"], store.index.label[part.row]
    trained = np.bincount(label[~is_held], minlength=len(names))
    is_rare = (trained < FEW_ROWS)[label]
    rare = np.unique(label[is_rare]).tolist()
    shown = ", ".join(f"{names[at]} ({trained[at]})" for at in rare[:SHOWN_CLASSES])
    report(store, part.row[is_rare], "rare_labels", findings, lambda _: shown)
    if spec.checks.rare_labels != "skip":
        return np.zeros_like(is_rare)
    leave_out(store, part.row[is_rare], "data.skip_rare_labels", leftovers)
    return is_rare


def _columns(store: Store) -> list[str]:
    found = store.meta["understood"]["columns"].values()
    return list(dict.fromkeys(name for names in found for name in names))


def _classes(index: Index, rows: Numbers, names: list[str], columns: list[str]) -> Classes:
    """Return the classes of the rows in use.

    Raises:
        DatasetError: If there is just one.
    """
    present: Any = np.unique(index.label[rows]).tolist()
    if len(present) < LEAST_CLASSES <= len(rows):
        label = names[present[0]]
        raise DatasetError("data.one_class", label=label, rows=len(rows), columns=columns)
    ids = np.full(len(names), -1, "int32")
    ids[present] = np.arange(len(present))
    return Classes(tuple(names[at] for at in present), ids)
