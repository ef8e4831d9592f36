"""What the checks found in the data, and what is done about each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from html import escape
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.recipe import ChecksSpec
from lora_studio.recipe import choices as words
from lora_studio.ui import render
from lora_studio.ui.form import Form
from lora_studio.ui.language import Voice, text
from lora_studio.wording import say

LISTED_ROWS = 6
EXAMPLE_CHARACTERS = 160
STOPS = "data.check_stops_"
BROKEN_ROW = frozenset({"data.broken_json", "data.ragged_row", "data.row_not_object"})
"""Errors that the check of broken rows raises as they are."""


@dataclass(frozen=True, slots=True)
class Checks:
    """The components: one line for each check, hidden where there is nothing to say."""

    part: gr.Column
    clean: gr.HTML
    lines: dict[str, gr.Row]
    sentences: dict[str, gr.HTML]
    choices: dict[str, gr.Dropdown]

    @property
    def shown(self) -> list[Any]:
        """What `show` and `show_problem` may change."""
        return [self.part, self.clean, *self.lines.values(), *self.sentences.values()]

    def show(self, found: Mapping[str, Any], chosen: ChecksSpec, voice: Voice) -> dict[Any, Any]:
        """Return what the components show of a report.

        A check whose choice is not the usual one keeps its line, so that it can be taken back.
        """
        findings = {finding["check"]: finding for finding in found["findings"]}
        clean = render.note(voice("checks_clean"), "good") if not findings else ""
        shown: dict[Any, Any] = {
            self.part: gr.Column(visible=True),
            self.clean: gr.HTML(clean, visible=bool(clean)),
        }
        for name, line in self.lines.items():
            finding = findings.get(name)
            is_usual = getattr(chosen, name) == getattr(ChecksSpec(), name)
            shown[line] = gr.Row(visible=finding is not None or not is_usual)
            if finding or not is_usual:
                shown[self.sentences[name]] = sentence(name, finding, voice)
        return shown

    def show_problem(self, error: StudioError, chosen: ChecksSpec, voice: Voice) -> dict[Any, Any]:
        """Return what the components show where a check has stopped the preview."""
        stopped = stopped_by(error)
        visible = {
            name
            for name in self.lines
            if name == stopped or getattr(chosen, name) != getattr(ChecksSpec(), name)
        }
        return {
            self.part: gr.Column(visible=bool(visible)),
            self.clean: gr.HTML(visible=False),
            **{line: gr.Row(visible=name in visible) for name, line in self.lines.items()},
            **{
                self.sentences[name]: sentence(name, None, voice, stops=name == stopped)
                for name in visible
            },
        }


def build(form: Form) -> Checks:
    """Lay out this part of the card."""
    lines, sentences, choices = {}, {}, {}
    with gr.Column(visible=False, elem_id="data-checks", elem_classes="ls-checks") as part:
        gr.HTML(text("checks_part"), elem_classes="ls-title")
        clean = gr.HTML(elem_id="checks-clean")
        for check in fields(ChecksSpec):
            name = check.name
            with gr.Row(
                visible=False, elem_id=f"check-{name.replace('_', '-')}", elem_classes="ls-check"
            ) as line:
                sentences[name] = gr.HTML(scale=5, min_width=220)
                choices[name] = form.add(
                    f"data.checks.{name}",
                    gr.Dropdown(
                        [(text(f"choice_{word}"), word) for word in words(name)],
                        value=check.default,
                        label=text("check_choice"),
                        show_label=False,
                        min_width=150,
                    ),
                )
            lines[name] = line
    return Checks(part, clean, lines, sentences, choices)


def stopped_by(error: StudioError) -> str:
    """Return the name of the check that an error comes from, or nothing."""
    if error.key in BROKEN_ROW:
        return "broken_rows"
    return error.key.removeprefix(STOPS) if error.key.startswith(STOPS) else ""


def sentence(
    name: str, finding: Mapping[str, Any] | None, voice: Voice, *, stops: bool = False
) -> str:
    """Return one check's line: what it is, how many rows, where, and an example."""
    title = f"<b>{escape(say(f'data.check_{name}', voice.language))}</b>"
    if finding is None:
        said = voice("check_stopped") if stops else voice("check_none")
        return f'<p>{title} <span class="ls-quiet">{escape(said)}</span></p>'
    listed = finding["rows"][:LISTED_ROWS]
    places = ", ".join(f"{file}:{number}" for file, number in listed)
    more = finding["count"] - len(listed)
    if listed and more > 0:
        places += voice("and_more", n=f"{more:,}")
    rows = voice("check_rows", n=f"{finding['count']:,}")
    parts = [f"<p>{title} {escape(rows)}</p>"]
    if places:
        parts.append(render.quiet(places))
    if finding["example"]:
        parts.append(f"<q>{escape(str(finding['example'])[:EXAMPLE_CHARACTERS])}</q>")
    if finding["looked_at"] is not None:
        looked = voice("checks_looked", n=f"{finding['looked_at']:,}")
        parts.append(render.quiet(looked))
    return "".join(parts)
