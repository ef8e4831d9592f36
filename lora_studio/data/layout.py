"""Which tokens of which encoded row are learned from, which are held out, and what is left over.

Everything here follows from the index of a store and a few settings, so that moving a slider
encodes nothing again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lora_studio.data import splitting
from lora_studio.data.checking.findings import LISTED_ROWS, Findings
from lora_studio.data.encoding import IGNORE_INDEX, Encoded, Whole
from lora_studio.data.examples import Skipped
from lora_studio.data.splitting import Numbers
from lora_studio.data.store import HELD, UNDECIDED, Index, Store
from lora_studio.errors import DatasetError
from lora_studio.recipe import DataSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

LISTED_SKIPS = 200


@dataclass(frozen=True, slots=True)
class Part:
    """Slices of rows, each an encoded row for the model; arrays of equal length."""

    row: Numbers
    """Which row of the store (int64)."""
    start: Numbers
    """First token (int32)."""
    stop: Numbers
    """The token after the last (int32)."""
    fresh: Numbers
    """First token that may be trained on: in a text, what stands before was trained on already."""

    def __len__(self) -> int:
        return len(self.row)

    def where(self, chosen: Numbers) -> Part:
        """Return the slices at the chosen positions."""
        return Part(self.row[chosen], self.start[chosen], self.stop[chosen], self.fresh[chosen])


@dataclass(slots=True)
class Leftovers:
    """Rows that are not used: how many for each reason, and the first of them by name."""

    counts: Counter[str] = field(default_factory=Counter)
    listed: list[Skipped] = field(default_factory=list)

    def add(self, skipped: Skipped) -> None:
        """Count a row; name it while there is room."""
        self.counts[skipped.reason] += 1
        if len(self.listed) < LISTED_SKIPS:
            self.listed.append(skipped)


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a text classification; none for other formats."""

    names: tuple[str, ...] = ()
    """Their names, in the order of their ids."""
    ids: Numbers = field(default_factory=lambda: np.empty(0, "int32"))
    """The id of each label of the store, -1 where no row of it is used (int32)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every row went."""

    train: Part
    evaluation: Part
    leftovers: Leftovers
    classes: Classes = field(default_factory=Classes)


def lay_out(
    store: Store,
    spec: DataSpec,
    *,
    seed: int,
    beginning: int,
    piece: Callable[[int], str],
    findings: Findings,
    leftovers: Leftovers,
) -> Layout:
    """Cut, leave out and hold out rows.

    Args:
        store: The encoded rows.
        spec: Lengths, fractions, and what to do about findings.
        seed: Chooses what is held out.
        beginning: Number of tokens put before each piece of a text.
        piece: Gives a token's text.
        findings: Told of answers without their end, and of held-out rows that are trained on.
        leftovers: Rows left out before; those left out here are added.

    Raises:
        DatasetError: If no conversation keeps any of its answer.
    """
    index = store.index
    chats = _chats(store, spec, findings, leftovers)
    texts = _texts(store, spec, beginning=beginning, piece=piece)
    both = Part(
        *(
            np.concatenate([getattr(chats, name), getattr(texts, name)])
            for name in ("row", "start", "stop", "fresh")
        )
    )
    is_held = _held(index, chats.row, spec, seed)[both.row]
    is_held &= ~_leaks(store, both, is_held, spec, findings)
    leftovers.listed.sort(key=lambda row: (store.order(row.file), row.number))
    return Layout(both.where(~is_held), both.where(is_held), leftovers)


def encoded(row: Whole, part: Part, at: int, *, prefix: list[int], is_text: bool) -> Encoded:
    """Return one slice as the model takes it."""
    start, stop, fresh = int(part.start[at]), int(part.stop[at]), int(part.fresh[at])
    if not is_text:
        return Encoded.cut(row, start, stop)
    ids = row.ids[start:stop]
    read_only = len(prefix) + fresh - start
    labels = [IGNORE_INDEX] * read_only + ids[fresh - start :]
    return Encoded([*prefix, *ids], labels, len(prefix) + len(ids), read_only)


def trained_tokens(index: Index, part: Part) -> int:
    """Return how many tokens of the slices are trained on."""
    is_text = index.is_text[part.row]
    chats = part.where(~is_text)
    kept = _kept(index, chats.row, chats.start, chats.stop).sum()
    return int(kept + (part.stop - part.fresh)[is_text].sum())


def _chats(store: Store, spec: DataSpec, findings: Findings, leftovers: Leftovers) -> Part:
    """Cut conversations; leave out those that keep nothing to learn."""
    index = store.index
    rows = np.flatnonzero(~index.is_text)
    length = index.length[rows]
    is_over = length > spec.max_length
    start = np.zeros(len(rows), "int32")
    if spec.truncation == "start":
        start = np.where(is_over, length - spec.max_length, 0).astype("int32")
    stop = np.minimum(start + spec.max_length, length).astype("int32")
    end = np.zeros(len(index), "int32")
    end[index.span_row] = index.span_stop  # spans stand in order: the last one stays
    lost = end[rows] > stop
    gone = np.zeros(len(rows), bool)
    if spec.truncation == "drop":
        leave_out(store, rows[is_over], "data.skip_too_long", leftovers)
        gone |= is_over
    else:
        report(store, rows[lost], "lost_ends", findings, store.tail)
        if spec.checks.lost_ends == "fix":
            start = np.where(lost, length - spec.max_length, start).astype("int32")
            stop = np.where(lost, length, stop).astype("int32")
        if spec.checks.lost_ends == "skip":
            leave_out(store, rows[lost], "data.skip_lost_ends", leftovers)
            gone |= lost
    kept = _kept(index, rows, start, stop)
    nothing = ~gone & (kept == 0)
    leave_out(store, rows[nothing], "data.skip_answer_cut", leftovers)
    gone |= nothing
    if len(rows) and gone.all() and nothing.any():
        raise _nothing_left(index, rows, spec.max_length)
    stay = ~gone
    return Part(rows[stay], start[stay], stop[stay], start[stay])


def _kept(index: Index, rows: Numbers, start: Numbers, stop: Numbers) -> Numbers:
    """Return how many trained tokens of each row stand between start and stop."""
    starts, stops = np.zeros(len(index), "int32"), np.zeros(len(index), "int32")
    starts[rows], stops[rows] = start, stop
    first = np.maximum(index.span_start, starts[index.span_row])
    last = np.minimum(index.span_stop, stops[index.span_row])
    kept = np.bincount(index.span_row, np.maximum(last - first, 0), minlength=len(index))
    return kept[rows]


def _texts(store: Store, spec: DataSpec, *, beginning: int, piece: Callable[[int], str]) -> Part:
    """Cut texts into pieces."""
    room = spec.max_length - beginning
    slices: list[tuple[int, int, int, int]] = []
    rows = np.flatnonzero(store.index.is_text)
    numbers = iter(rows.tolist())
    for batch in store.batches(rows):
        for row, number in zip(batch, numbers, strict=False):
            slices += _pieces(row.ids, number, room, spec.chunk_overlap, piece)
    found = np.array(slices, dtype="int64").reshape(-1, 4)
    return Part(found[:, 0], *(found[:, at].astype("int32") for at in (1, 2, 3)))


def _pieces(
    ids: list[int], row: int, room: int, share: float, piece: Callable[[int], str]
) -> Iterator[tuple[int, int, int, int]]:
    fresh = 0
    for start, stop in splitting.cut(ids, room=room, piece=piece, overlap=int(room * share)):
        yield row, start, stop, fresh
        fresh = stop


def _held(index: Index, chats: Numbers, spec: DataSpec, seed: int) -> Numbers:
    """Tell of every row of the store whether it is held out (bool); of usable `chats` only."""
    held: Numbers = index.part == HELD
    for rows in (chats, np.flatnonzero(index.is_text & (index.part == UNDECIDED))):
        held[rows] = splitting.hold_out(
            index.document[rows], fraction=spec.eval_fraction, seed=seed
        )
    return held


def _leaks(
    store: Store, part: Part, is_held: Numbers, spec: DataSpec, findings: Findings
) -> Numbers:
    """Tell which held-out rows stand in the training rows too and shall not be held out."""
    index = store.index
    is_chat = ~index.is_text[part.row]
    trained = np.unique(index.content[part.row[is_chat & ~is_held]])
    leaking = is_chat & is_held & np.isin(index.content[part.row], trained)
    report(store, part.row[leaking], "leaks", findings, store.excerpt)
    return leaking if spec.checks.leaks == "fix" else np.zeros_like(leaking)


def report(
    store: Store, rows: Numbers, check: str, findings: Findings, show: Callable[[int], str]
) -> None:
    """Tell the findings of rows; only the first is shown."""
    if len(rows):
        places = [store.place(row) for row in rows[:LISTED_ROWS].tolist()]
        findings.add_many(check, len(rows), rows=places, example=show(int(rows[0])))


def leave_out(store: Store, rows: Numbers, reason: str, leftovers: Leftovers) -> None:
    """Count rows as left out for a reason, a key of the string table."""
    for row in rows.tolist():
        file, number = store.place(row)
        leftovers.add(Skipped(file, number, reason))


def _nothing_left(index: Index, rows: Numbers, max_length: int) -> DatasetError:
    shortest = rows[np.argmin(index.length[rows])]
    needed = int(index.length[shortest])
    spans = index.span_start[index.span_row == shortest]
    return DatasetError(
        "data.answers_cut", max_length=max_length, needed=needed, answer=needed - int(spans[0])
    )
