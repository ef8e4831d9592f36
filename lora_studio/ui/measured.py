"""What was measured of an adapter, as the page shows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from html import escape

from lora_studio.measuring.measurements import Compared, Measured
from lora_studio.measuring.remarks import remarks
from lora_studio.ui import numbers, render
from lora_studio.ui.language import Voice
from lora_studio.wording import say

HEADS = ("measure_what", "base_side", "measure_adapter", "measure_interval")
SHARES = ("exact", "rouge_l", "match", "accuracy", "f1")
"""Scores from 0 to 1; they are shown in percent."""
LESS_IS_BETTER = ("loss",)


def measured(found: Iterable[Measured], name: str, voice: Voice) -> str:
    """Return what was measured of an adapter: a block for each time, under its name."""
    return "".join(_block(one, name, voice) for one in found)


def _block(found: Measured, name: str, voice: Voice) -> str:
    """Return one measurement: a table, and beneath it the verdicts."""
    rows = "".join(_row(*score, voice) for score in _scores(found))
    heads = map(voice, HEADS)
    table = render.table(heads, rows) if rows else ""
    sentences = (
        say(key, voice.language, **values) for key, values in remarks(found, voice.language)
    )
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    about = {"name": name, "when": _when(found.measured_at)}
    head = (
        voice("measure_of_rows", run=found.rows_of, **about)
        if found.rows_of
        else voice("measure_of", **about)
    )
    return f'<div class="ls-measured"><h4>{escape(head)}</h4>{table}<ul>{said}</ul></div>'


def _when(measured_at: str) -> str:
    """Return a time of a file, in UTC, as that of the clock here."""
    try:
        return numbers.moment(datetime.fromisoformat(measured_at).timestamp())
    except ValueError:
        return measured_at


def _scores(found: Measured) -> Iterator[tuple[str, Compared, str]]:
    """Yield names, numbers, and how they are coloured; perplexity rises and falls with the loss."""
    scores: dict[str, Compared] = {}
    if found.loss is not None:
        base, adapter = found.loss.perplexity
        colour = _colour("loss", found.loss.mean)
        yield "loss", found.loss.mean, colour
        yield "perplexity", Compared(base=base, adapter=adapter), colour
    if found.classes is not None:
        scores |= {"accuracy": found.classes.accuracy, "f1": found.classes.f1}
    if found.answers is not None:
        scores |= found.answers.scores
    for name, score in scores.items():
        yield name, score, _colour(name, score)


def _colour(name: str, score: Compared) -> str:
    """Return ` up` or ` down` for a difference that is sure: whose interval is beside 0."""
    if score.low is None or score.high is None or score.low <= 0 <= score.high:
        return ""
    return " up" if (score.low > 0) == (name not in LESS_IS_BETTER) else " down"


def _row(name: str, score: Compared, colour: str, voice: Voice) -> str:
    form = "{:.1%}" if name in SHARES else "{:.4g}"
    interval = "–"
    if score.low is not None and score.high is not None:
        signed = form.replace(":", ":+")
        interval = f"{signed.format(score.low)} … {signed.format(score.high)}"
    label = voice("measure_match_score" if name == "match" else f"measure_{name}")
    return (
        f"<tr><td>{escape(label)}</td><td>{form.format(score.base)}</td>"
        f'<td class="by{colour}">{form.format(score.adapter)}</td><td>{interval}</td></tr>'
    )
