"""One measurement, from rows to numbers: the order of things."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from lora_studio.chat.request import Sampling, Who
from lora_studio.measuring.answering import (
    Asked,
    Written,
    answered,
    asked_rows,
    longest_answer,
    scored,
)
from lora_studio.measuring.forgetting import verdict
from lora_studio.measuring.measurements import Forgotten, Loss, Measured
from lora_studio.measuring.primitives import Pace, Primitives, sums
from lora_studio.measuring.rows import HeldOutRow
from lora_studio.measuring.sorting import sorted_by
from lora_studio.measuring.statistics import SEED, compared
from lora_studio.measuring.wanted import Material, Subject, Wanted

LIBRARIES = ("torch", "transformers", "peft", "rouge-score", "sacrebleu")
WRITTEN = 4
"""A token that is written takes about as long as so many that are read."""

LOSS, ANSWERS, PROBE, CLASSES = (
    "measure_loss", "measure_answers", "measure_probe", "measure_classes",
)  # fmt: skip
"""Stages, as progress names them."""


def measure(
    subject: Subject, material: Material, wanted: Wanted, primitives: Primitives
) -> Iterator[dict[str, Any]]:
    """Measure a base and an adapter on the same rows; closing the iterator ends it.

    Args:
        subject: Which.
        material: On what.
        wanted: How much, settled (`Wanted.settled`).
        primitives: Where both are loaded.

    Yields:
        `{"stage", "done", "total", "seconds_left"}`, at last `{"result": Measured}`.

    Raises:
        StudioError: If the engine says so.
    """
    began = time.monotonic()
    work = _Work(subject, material, wanted, primitives)
    yield from work.run()
    yield {
        "result": Measured(
            adapter=subject.adapter,
            weights=subject.weights,
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - began, 1),
            base=subject.base,
            precision=subject.precision,
            device=subject.device,
            held_out=material.held_out.total,
            seed=SEED,
            rows_of=material.rows_of,
            seen=material.seen,
            versions=_versions(),
            **work.found,
        )
    }


def losses(
    rows: Sequence[HeldOutRow],
    who: tuple[Who, Who],
    primitives: Primitives,
    pace: Pace | None = None,
) -> Iterator[dict[str, Any]]:
    """Measure the loss of two on the answers of the same rows.

    Args:
        rows: At least one.
        who: The base, or an adapter; and the adapter that is compared with it.
        primitives: Where both are loaded.
        pace: That of a longer work; None begins one.

    Yields:
        As `measure`; the result is a `Loss`.
    """
    pace = pace or Pace({LOSS: _tokens(rows)})
    found: dict[int, Sequence[float]] = {}
    yield pace.progress(LOSS, 0, len(rows))
    for at, nll in sums(rows, who, primitives):
        found[at] = nll
        yield pace.progress(LOSS, len(found), len(rows))
    tokens = [row.answer_tokens for row in rows]
    first, second = ([found[at][side] for at in range(len(tokens))] for side in (0, 1))
    mean = compared(first, second, tokens)
    yield {"result": Loss(rows=len(tokens), tokens=sum(tokens), mean=mean)}


class _Work:
    """One measurement on its way."""

    def __init__(
        self, subject: Subject, material: Material, wanted: Wanted, primitives: Primitives
    ) -> None:
        self._subject = subject
        self._rows = material.held_out.rows
        self._lack = material.lack
        self._probe = material.probe
        self._match = wanted.match
        self._primitives = primitives
        self._who: tuple[Who, Who] = (None, subject.adapter)
        self._asked = asked_rows(self._rows, wanted.answers or 0)
        self._notes: list[str] = []
        self.found: dict[str, Any] = {}

    def run(self) -> Iterator[dict[str, Any]]:
        """Do all that can be done with these rows."""
        pace = Pace(self._amounts())
        if not self._rows:
            self._notes.append(self._lack)
        elif self._subject.labels:
            yield from self._sort(pace)
        else:
            yield from self._read(pace)
            if self._asked:
                yield from self._answer(pace)
            elif not any(row.prompt for row in self._rows):
                self._notes.append("measuring.nothing_to_ask")
        if self._probe and not self._subject.labels:
            yield from self._remember(pace)
        self.found["notes"] = tuple(self._notes)

    def _amounts(self) -> dict[str, float]:
        """Return what the stages take, in tokens that are read."""
        probe = {PROBE: sum(map(_tokens, self._probe.values()))}
        if self._subject.labels:
            return {CLASSES: _tokens(self._rows)}
        writes = len(self._asked) * longest_answer(self._asked) * WRITTEN
        return {LOSS: _tokens(self._rows), ANSWERS: float(writes), **probe}

    def _read(self, pace: Pace) -> Iterator[dict[str, Any]]:
        """Measure the loss on the answers of held-out rows."""
        for event in losses(self._rows, self._who, self._primitives, pace):
            if "result" in event:
                self.found["loss"] = event["result"]
            else:
                yield event

    def _answer(self, pace: Pace) -> Iterator[dict[str, Any]]:
        """Have both answer, and compare that with what the rows say."""
        sampling = Sampling(greedy=True, max_new_tokens=longest_answer(self._asked))
        asked = Asked(rows=self._asked, adapter=self._subject.adapter, sampling=sampling)
        yield pace.progress(ANSWERS, 0, len(self._asked))
        found: dict[int, Written] = {}
        for one in answered(asked, self._primitives):
            found[one.row] = one
            yield pace.progress(ANSWERS, len(found), len(self._asked))
        written = [found[row] for row in range(len(self._asked))]
        self.found["answers"], notes = scored(asked, written, match=self._match)
        self._notes += notes

    def _sort(self, pace: Pace) -> Iterator[dict[str, Any]]:
        """Have both sort the held-out texts into classes."""
        rows = self._rows
        predicted: list[tuple[int, int]] = []
        yield pace.progress(CLASSES, 0, len(rows))
        for row in rows:
            base, adapter = self._primitives.classify(row.ids, self._who)
            predicted.append((_likeliest(base), _likeliest(adapter)))
            yield pace.progress(CLASSES, len(predicted), len(rows))
        true = [row.label for row in rows]
        self.found["classes"] = sorted_by(true, predicted, self._subject.labels)

    def _remember(self, pace: Pace) -> Iterator[dict[str, Any]]:
        """Have both read general texts."""
        total = sum(map(len, self._probe.values()))
        done, found = 0, []
        yield pace.progress(PROBE, 0, total)
        for language, rows in self._probe.items():
            nll = [0.0, 0.0]
            for _, (base, adapter) in sums(rows, self._who, self._primitives):
                nll[0] += base
                nll[1] += adapter
                done += 1
                yield pace.progress(PROBE, done, total)
            tokens = sum(row.answer_tokens for row in rows)
            base, adapter = (value / tokens for value in nll)
            found.append(
                Forgotten(
                    language=language,
                    tokens=tokens,
                    base=base,
                    adapter=adapter,
                    verdict=verdict(base, adapter),
                )
            )
        self.found["forgetting"] = tuple(found)


def _tokens(rows: Sequence[HeldOutRow]) -> float:
    return float(sum(len(row.ids) for row in rows))


def _likeliest(probabilities: Sequence[float]) -> int:
    return max(range(len(probabilities)), key=probabilities.__getitem__)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
