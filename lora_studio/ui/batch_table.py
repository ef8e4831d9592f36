"""A table of answers to a list of prompts, as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lora_studio.errors import from_dict
from lora_studio.judging.batch import Batch, Known
from lora_studio.judging.filling import STAGE
from lora_studio.ui import numbers, render
from lora_studio.ui.compare_panes import name_of
from lora_studio.ui.language import Voice

MOST_SHOWN = 200
"""So many rows stand on the page; a file has all."""


def shown(batch: Batch, voice: Voice) -> str:
    """Return the table so far, a row for each of the last prompts that somebody has answered."""
    answered = sorted({prompt for prompt, _ in batch.answers})
    if not answered:
        return ""
    names = [name_of(one, voice) for one in batch.asked.contenders]
    rows = [batch.row(prompt) for prompt in answered[-MOST_SHOWN:]]
    has_references = any(row["reference"] for row in rows)
    heads = [voice("batch_prompt"), *([voice("batch_reference")] if has_references else []), *names]
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(_row(row, voice, has_references=has_references) for row in rows)
    said = voice("batch_last", shown=MOST_SHOWN, total=len(answered))
    rest = render.quiet(said) if len(answered) > MOST_SHOWN else ""
    return (
        f'<div class="ls-scroll"><table class="ls-batch"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{rest}"
    )


def _row(row: Mapping[str, Any], voice: Voice, *, has_references: bool) -> str:
    asked = [row["question"], *([row["reference"]] if has_references else [])]
    cells = [*map(escape, asked), *(_answer(one, voice) for one in row["answers"])]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _answer(found: Mapping[str, Any] | None, voice: Voice) -> str:
    """Return an answer as HTML, with a word on one that is not whole."""
    if found is None:
        return "…"
    remark, said = "", found["text"]
    if found["reason"] == "refused":
        remark, said = voice("batch_refused"), _problem(found["problem"], voice)
    elif found["reason"] == "length":
        remark = voice("batch_cut")
    return escape(said) + (f'<small class="ls-quiet">{escape(remark)}</small>' if remark else "")


def _problem(problem: Mapping[str, Any] | None, voice: Voice) -> str:
    """Return why a prompt was refused; nothing, if another version of the program wrote that."""
    try:
        return from_dict(dict(problem or {})).say(voice.language)
    except KeyError:
        return ""


def progress(event: Mapping[str, Any], voice: Voice) -> str:
    """Return how far it is, with a bar, and how long it will take; or what is waited for."""
    if event.get("stage") != STAGE:
        return render.waiting(event, voice)
    sentence = voice("batch_progress", done=event["done"], total=event["total"])
    return render.timed(sentence, event, voice)


def choices(tables: Sequence[Known], voice: Voice) -> list[tuple[str, str]]:
    """Return tables to choose from, with when they were begun and how far they are."""
    return [
        (
            voice(
                "batch_earlier_one",
                when=numbers.moment(one.begun) if one.begun else one.name,
                done=one.done,
                total=one.total,
            ),
            one.name,
        )
        for one in tables
    ]
