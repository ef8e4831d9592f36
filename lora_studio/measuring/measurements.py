"""What was measured of an adapter, kept in the folder of its run.

measurements.json                      its newest adapter, on the rows that the run held out
measurements/step-40.json              the adapter of a checkpoint
measurements/[step-40-]on-RUN.json     on the rows that another run held out
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from lora_studio.adapters.configuration import weights_of
from lora_studio.files import write_whole

NAME, FOLDER = "measurements.json", "measurements"
VERSION = 1

Verdict = Literal["unchanged", "slight", "clear", "bad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One number of the base and of the adapter, over the same rows."""

    base: float
    adapter: float
    low: float | None = None
    high: float | None = None
    """Bounds of the 95 % interval of adapter minus base (paired bootstrap over rows); None where
    there are too few rows, or all differ alike."""

    @property
    def difference(self) -> float:
        """Adapter minus base."""
        return self.adapter - self.base


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Cross entropy on the answers of held-out rows."""

    rows: int
    """Rows that were measured."""
    tokens: int
    """Answer tokens in them, each counted once."""
    mean: Compared
    """Nats a token: the sum over all answer tokens by their number."""

    @property
    def perplexity(self) -> tuple[float, float]:
        """The exponential of the loss: the base's, and the adapter's."""
        return perplexity(self.mean.base), perplexity(self.mean.adapter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One question that base and adapter answered."""

    question: str
    reference: str
    base: str
    adapter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """How near greedy answers come to those of held-out rows."""

    rows: int
    max_new_tokens: int
    """Longest answer that was let be written."""
    cut_off: int
    """Answers of either that reached it."""
    match: str
    """What counts as right beside an exact match: empty, `number`, or a regular expression."""
    scores: Mapping[str, Compared]
    """`exact`, `rouge_l`, `bleu` (not of short references) and, where it was asked for, `match`;
    0 to 1, BLEU to 100."""
    bleu_signature: str = ""
    """How BLEU was computed, as sacreBLEU writes it (Post 2018, arXiv 1804.08771)."""
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """How well held-out texts are sorted."""

    rows: int
    labels: tuple[str, ...]
    accuracy: Compared
    f1: Compared
    """Macro: the mean over classes that stand in the rows or were predicted."""
    confusion: tuple[tuple[int, ...], ...]
    """The adapter's: true classes by predicted ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """Loss on a general text that has nothing to do with the training."""

    language: str
    """`en` or `ko`."""
    tokens: int
    base: float
    adapter: float
    """Nats a token."""
    verdict: Verdict

    @property
    def rise(self) -> float:
        """By what share of the base's the loss has risen."""
        return self.adapter / self.base - 1

    @property
    def perplexity(self) -> tuple[float, float]:
        """The exponential of the loss: the base's, and the adapter's."""
        return perplexity(self.base), perplexity(self.adapter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All that one measurement found."""

    adapter: str
    """Name of the adapter."""
    weights: str
    """SHA-256 of its file of weights: another file was not measured."""
    measured_at: str
    """When, in UTC (ISO 8601)."""
    seconds: float
    base: str
    """Name of the base model."""
    precision: str
    device: str
    held_out: int
    """Rows that were held out; of them some were measured, evenly chosen."""
    seed: int
    """Of the bootstrap."""
    rows_of: str = ""
    """The run that held these rows out; empty for the one that made the adapter."""
    seen: int | None = 0
    """How many of the measured rows stand in what the adapter learned from; None where that is not
    known. Those that its own run held out never do."""
    loss: Loss | None = None
    answers: Answers | None = None
    classes: Classes | None = None
    forgetting: tuple[Forgotten, ...] = ()
    notes: tuple[str, ...] = ()
    """Keys of sentences on what was not measured."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the libraries that computed."""
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; perplexities and rises are written out."""
        fields = asdict(self)
        if self.loss is not None:
            fields["loss"]["perplexity"] = _sides(self.loss.perplexity)
        for entry, found in zip(fields["forgetting"], self.forgetting, strict=True):
            entry |= {"rise": found.rise, "perplexity": _sides(found.perplexity)}
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Build what `to_dict` described.

        Raises:
            KeyError: If something is missing; TypeError or ValueError if it is something else.
        """
        known = dict(fields)
        if known["version"] != VERSION:
            raise ValueError(known["version"])
        known["loss"] = _loss(known["loss"])
        known["answers"] = _answers(known["answers"])
        known["classes"] = _classes(known["classes"])
        known["forgetting"] = tuple(
            Forgotten(**{name: entry[name] for name in entry.keys() - {"rise", "perplexity"}})
            for entry in known["forgetting"]
        )
        known["notes"] = tuple(known["notes"])
        return cls(**known)


def perplexity(loss: float) -> float:
    """Return the exponential of a loss in nats; infinite where that is beyond a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def file_of(folder: Path, *, step: str = "", rows_of: str = "") -> Path:
    """Return where a measurement lies.

    Args:
        folder: The run's folder, or that of an adapter from elsewhere.
        step: Of a checkpoint; empty for the newest adapter.
        rows_of: As in `Measured`.
    """
    parts = [f"step-{step}"] * bool(step) + [f"on-{rows_of}"] * bool(rows_of)
    return folder / FOLDER / f"{'-'.join(parts)}.json" if parts else folder / NAME


def keep(folder: Path, measured: Measured, *, step: str = "") -> None:
    """Write what was measured into a folder, in place of what was measured of the same before.

    Raises:
        OSError: If the folder does not take it.
    """
    file = file_of(folder, step=step, rows_of=measured.rows_of)
    file.parent.mkdir(exist_ok=True)
    text = json.dumps(measured.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)
    write_whole(file, text)


def read(folder: Path, adapter: Path, *, step: str = "") -> Measured | None:
    """Return what was measured on rows of the adapter's own run, None where nothing was.

    Args:
        folder: As in `file_of`.
        adapter: The folder of the adapter's weights: if they are others than those that were
            measured, nothing is returned.
        step: As in `file_of`.
    """
    return next(_read([file_of(folder, step=step)], adapter), None)


def read_all(folder: Path, adapter: Path, *, step: str = "") -> list[Measured]:
    """Return what was measured on its own rows, then on those of other runs; as `read`."""
    own = file_of(folder, step=step)
    others = sorted((folder / FOLDER).glob(file_of(folder, step=step, rows_of="*").name))
    return list(_read([own, *others], adapter))


def _read(files: Iterable[Path], adapter: Path) -> Iterator[Measured]:
    """Yield what files say of these weights; one that says something else counts for nothing."""
    weights = None
    for file in files:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = Measured.from_dict(json.loads(file.read_text(encoding="utf-8")))
            weights = weights or weights_of(adapter)
            if found.weights == weights:
                yield found


def _sides(values: tuple[float, float]) -> dict[str, float | None]:
    """Return a number of both; one beyond a float, which JSON cannot hold, is None."""
    base, adapter = (value if math.isfinite(value) else None for value in values)
    return {"base": base, "adapter": adapter}


def _loss(fields: Mapping[str, Any] | None) -> Loss | None:
    if fields is None:
        return None
    return Loss(rows=fields["rows"], tokens=fields["tokens"], mean=Compared(**fields["mean"]))


def _answers(fields: Mapping[str, Any] | None) -> Answers | None:
    if fields is None:
        return None
    scores = {name: Compared(**score) for name, score in fields["scores"].items()}
    examples = tuple(Example(**entry) for entry in fields["examples"])
    return Answers(**{**fields, "scores": scores, "examples": examples})


def _classes(fields: Mapping[str, Any] | None) -> Classes | None:
    if fields is None:
        return None
    return Classes(
        rows=fields["rows"],
        labels=tuple(fields["labels"]),
        accuracy=Compared(**fields["accuracy"]),
        f1=Compared(**fields["f1"]),
        confusion=tuple(tuple(row) for row in fields["confusion"]),
    )
