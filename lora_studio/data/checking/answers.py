"""One answer that stands in most rows: a model then learns to say it to everything."""

from __future__ import annotations

from dataclasses import dataclass, field

from lora_studio.data.checking.findings import LISTED_ROWS, Findings, Place

CHECK = "same_answers"
FEWEST_ROWS = 10
COUNTED = 1000
KEPT_CHARACTERS = 400


@dataclass(slots=True)
class _Answer:
    count: int
    start: str
    rows: list[Place] = field(default_factory=list)


class SameAnswers:
    """Finds the answer of more than half of the rows, in the memory of a thousand answers.

    Misra and Gries (1982): where there are more different answers, counts are too low by at most a
    thousandth of the rows; up to a thousand they are exact.
    """

    def __init__(self) -> None:
        self._answers: dict[int, _Answer] = {}
        self._total = 0

    def add(self, answer: str, place: Place) -> None:
        """Count one answer."""
        self._total += 1
        key = hash(answer)
        held = self._answers.get(key)
        if held is None:
            if len(self._answers) >= COUNTED:
                self._thin_out()
                return
            held = self._answers[key] = _Answer(0, answer[:KEPT_CHARACTERS])
        held.count += 1
        if len(held.rows) < LISTED_ROWS:
            held.rows.append(place)

    def report(self, findings: Findings) -> None:
        """Add the answer of more than half of at least ten rows."""
        if self._total < FEWEST_ROWS:
            return
        most = max(self._answers.values(), key=lambda answer: answer.count, default=None)
        if most is not None and most.count * 2 > self._total:
            findings.add_many(CHECK, most.count, rows=most.rows, example=most.start)

    def _thin_out(self) -> None:
        """Lower all counts by one and forget those at nothing."""
        for answer in self._answers.values():
            answer.count -= 1
        self._answers = {key: held for key, held in self._answers.items() if held.count}
