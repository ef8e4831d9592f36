"""What was understood of the data, as HTML. Everything that is not ours is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from lora_studio.ui import numbers, render
from lora_studio.ui.language import Voice
from lora_studio.wording import say

TEXT = "text"
WITH_TEXT = ("text", "mixed")
"""Formats of a report in which documents are learned as they are."""
LISTED_REASONS = 4
LISTED_CLASSES = 12
ONE_SIDED = 0.9
"""A class with a larger share of the rows is worth a warning."""


def summary(found: Mapping[str, Any], voice: Voice) -> str:
    """Return what was understood: the line that adds up, the numbers, what to know."""
    kinds = dict.fromkeys(found["formats"].values())
    names = dict.fromkeys(name for name in found["encodings"].values() if name)
    facts = [
        (voice("data_format"), " + ".join(voice(f"format_{kind}") for kind in kinds)),
        (voice("data_encoding"), ", ".join(names) or "–"),
        (voice("data_median"), f"{found['tokens_median']:,}"),
        (voice("data_longest"), f"{found['tokens_longest']:,}"),
        (voice("data_classes"), f"{len(found['labels']):,}")
        if found.get("labels")
        else (voice("data_trained"), numbers.count(found["trained_tokens"])),
    ]
    parts = [f'<p class="ls-strip">{escape(strip(found, voice))}</p>', render.facts(facts)]
    if found["format"] == TEXT:
        parts.append(render.quiet(voice("data_text_teaches")))
    parts.append(classes(found, voice))
    parts += [render.note(sentence, "warn") for sentence in warnings(found, voice)]
    return "".join(parts)


def strip(found: Mapping[str, Any], voice: Voice) -> str:
    """Return the line that adds the rows up, with the reasons of the skipped ones."""
    skipped = sorted(found["skipped"].items(), key=lambda item: -item[1])
    reasons = [f"{say(key, voice.language)}: {count:,}" for key, count in skipped[:LISTED_REASONS]]
    more = sum(count for _, count in skipped[LISTED_REASONS:])
    why = ", ".join(reasons) + (voice("and_more", n=f"{more:,}") if more else "")
    values = {
        "rows": f"{found['rows']:,}",
        "train": f"{found['trained_rows']:,}",
        "held": f"{found['eval_rows']:,}",
        "skipped": f"{sum(found['skipped'].values()):,}",
        "why": f" ({why})" if why else "",
    }
    if found["format"] == TEXT:
        return voice("data_strip_pieces", **values)
    return voice("data_strip", **values)


def classes(found: Mapping[str, Any], voice: Voice) -> str:
    """Return the rows of each class as bars, the largest class first; nothing for other formats."""
    by_size = sorted(found.get("labels", ()), key=lambda entry: -entry[1] - entry[2])
    if not by_size:
        return ""
    most = by_size[0][1] + by_size[0][2]
    bars = "".join(
        f'<li><span>{escape(name)}</span><i><b style="width:{(train + held) / most:.1%}"></b></i>'
        f"<span>{train:,} + {held:,}</span></li>"
        for name, train, held in by_size[:LISTED_CLASSES]
    )
    title = render.quiet(voice("classes_title"))
    more = len(by_size) - LISTED_CLASSES
    note = render.quiet(voice("classes_more", n=f"{more:,}")) if more > 0 else ""
    return f'{title}<ul class="ls-shares">{bars}</ul>{note}'


def one_sided(found: Mapping[str, Any], voice: Voice) -> str:
    """Return the sentence about a class that most rows belong to, or nothing."""
    sizes = {name: train + held for name, train, held in found.get("labels", ())}
    label = max(sizes, key=lambda name: sizes[name], default="")
    share = sizes[label] / sum(sizes.values()) if label else 0.0
    if share <= ONE_SIDED:
        return ""
    percent = min(round(share * 100), 99)  # there are at least two classes
    return voice("classes_one_sided", share=f"{percent}%", label=label)


def warnings(found: Mapping[str, Any], voice: Voice) -> list[str]:
    """Return what a person should know before training on the data."""
    said = [
        voice("data_unused", file=file, columns=", ".join(columns))
        for file, columns in found["unused_columns"].items()
        if columns
    ]
    said += filter(None, [one_sided(found, voice)])
    if found["last_answer_only"]:
        said.append(voice("data_last_only", n=found["last_answer_only"]))
    if found["own_template"]:
        said.append(voice("data_own_template", name=found["own_template"]))
    return said


def pairs(found: Mapping[str, Any], voice: Voice) -> str:
    """Return which documents look like questions and answers, with some of them."""
    parts = []
    for file, looks in found["pairs"].items():
        sentence = voice("pairs_found", file=file, n=f"{looks['count']:,}")
        shown = "".join(
            f"<dt>{escape(question)}</dt><dd>{escape(answer)}</dd>"
            for question, answer in looks["examples"]
        )
        parts.append(f'<p>{escape(sentence)}</p><dl class="ls-pairs">{shown}</dl>')
    return "".join(parts) or f"<p>{escape(voice('pairs_learned'))}</p>"
