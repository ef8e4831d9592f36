"""Card 2: the text to learn from, and the tokens it becomes."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.recipe import DataSpec, HubSpec
from lora_studio.ui import data_checks, data_columns, data_rows, length_chart
from lora_studio.ui.controls import slider
from lora_studio.ui.form import Form, bounds
from lora_studio.ui.language import hint, text
from lora_studio.wording import ASSETS

EXTENSIONS = [
    ".txt", ".md", ".rst", ".html", ".htm", ".pdf", ".docx", ".pptx", ".epub", ".csv", ".tsv",
    ".xlsx", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".gz", ".zip",
]  # fmt: skip
EXAMPLES = {
    "example_chat": "lighthouse.jsonl",
    "example_help": "helpdesk.csv",
    "example_text": "notes.md",
    "example_sort": "tickets.csv",
}
# With so few rows: enough steps to see an effect, in about four minutes on two cores.
EXAMPLE_SETTINGS = {
    "example_chat": {
        "data.format": "auto",
        "data.max_length": 512,
        "training.num_train_epochs": 2,
        "training.learning_rate": 5e-4,
    },
    "example_help": {
        "data.format": "auto",
        "data.max_length": 512,
        "training.num_train_epochs": 2,
        "training.learning_rate": 5e-4,
    },
    "example_text": {
        "data.format": "auto",
        "data.max_length": 128,
        "training.num_train_epochs": 10,
        "training.learning_rate": 5e-4,
    },
    "example_sort": {
        "data.format": "classification",
        "data.max_length": 64,
        "training.num_train_epochs": 8,
        "training.learning_rate": 5e-4,
    },
}


@dataclass(frozen=True, slots=True)
class Offer:
    """Documents that look like questions and answers."""

    part: gr.Column
    sentence: gr.HTML
    switch: gr.Button
    text_as: gr.State


@dataclass(frozen=True, slots=True)
class DataCard:
    """The components other cards and handlers need."""

    card: gr.Accordion
    files: gr.File
    pasted: gr.Textbox
    add: gr.Button
    examples: dict[str, gr.Button]
    hub: gr.Textbox
    fetch: gr.Button
    status: gr.HTML
    """What is being done, or what went wrong."""
    cancel: gr.Button
    summary: gr.HTML
    offer: Offer
    columns: data_columns.Columns
    checks: data_checks.Checks
    lengths: gr.HTML
    truncation: gr.Radio
    pieces: gr.Accordion
    rows: data_rows.Rows
    names: gr.State
    """Names of the chosen files on the shelf."""
    found: gr.State
    """The last report, or None."""
    asked: gr.State
    """Any other value than before asks for a preview."""
    changing: list[Any]
    """Controls of which each change makes another preview."""
    typed: list[gr.Textbox]
    """Text boxes of which the finished text makes another preview."""


def build(form: Form) -> DataCard:
    """Lay out the card."""
    with gr.Accordion(
        text("card_data"), open=True, elem_id="card-data", elem_classes="ls-card"
    ) as card:
        files, pasted, add = _sources()
        with gr.Row():
            examples = {
                name: gr.Button(text(name), size="sm", variant="secondary", elem_id=name)
                for name in EXAMPLES
            }
        hub, fetch = _hub(form)
        with gr.Column(elem_id="data-report"):
            status = gr.HTML(elem_id="data-status")
            cancel = gr.Button(
                text("data_cancel"), size="sm", scale=0, visible=False, elem_id="data-cancel"
            )
            summary = gr.HTML(elem_id="data-summary", visible=False)
            offer = _offer(form)
        columns = data_columns.build(form)
        checks = data_checks.build(form)
        lengths, limits = _lengths(form)
        pieces, overlap, marker = _pieces(form)
        rows = data_rows.build()
    return DataCard(
        card=card, files=files, pasted=pasted, add=add, examples=examples, hub=hub, fetch=fetch,
        status=status, cancel=cancel, summary=summary, offer=offer, columns=columns,
        checks=checks, lengths=lengths, truncation=limits[1], pieces=pieces, rows=rows,
        names=gr.State([]), found=gr.State(None), asked=gr.State(0),
        changing=[*limits, overlap, offer.text_as, *columns.changing, *checks.choices.values()],
        typed=[marker, columns.template],
    )  # fmt: skip


def _sources() -> tuple[gr.File, gr.Textbox, gr.Button]:
    with gr.Row(equal_height=True):
        files = gr.File(
            label=text("data_files"),
            file_count="multiple",
            file_types=EXTENSIONS,
            height=190,
            elem_id="data-files",
        )
        with gr.Column():
            pasted = gr.Textbox(
                label=text("data_paste"),
                placeholder=text("data_paste_hint"),
                lines=4,
                max_lines=4,
                elem_id="data-paste",
            )
            add = gr.Button(text("data_add"), size="sm", elem_id="data-add")
    return files, pasted, add


def _hub(form: Form) -> tuple[gr.Textbox, gr.Button]:
    """Lay out what names a part of a dataset on the Hub."""
    default = HubSpec()

    def line(name: str, placeholder: Any) -> gr.Textbox:
        return form.add(
            f"data.hub.{name}",
            gr.Textbox(
                ", ".join(default.columns) if name == "columns" else getattr(default, name),
                label=text(f"hub_{name}"), placeholder=placeholder, max_lines=1,
                elem_id=f"hub-{name.replace('_', '-')}",
            ),
        )  # fmt: skip

    def number(name: str) -> None:
        form.add(
            f"data.hub.{name}",
            gr.Number(
                getattr(default, name), label=text(f"hub_{name}"), precision=0,
                elem_id=f"hub-{name}",
            ),
        )  # fmt: skip

    with gr.Accordion(text("hub_part"), open=False, elem_id="data-hub"):
        with gr.Row():
            repo = line("repo_id", "owner/name")
            line("config", text("hub_config_hint"))
            line("split", "train")
        with gr.Row():
            line("columns", text("hub_columns_hint"))
            number("start")
            number("rows")
        fetch = gr.Button(text("hub_fetch"), size="sm", elem_id="hub-fetch")
    return repo, fetch


def _offer(form: Form) -> Offer:
    with gr.Column(visible=False, elem_id="data-offer", elem_classes="ls-offer") as part:
        sentence = gr.HTML(elem_id="data-pairs")
        switch = gr.Button(text("pairs_take"), size="sm", elem_id="data-as-pairs")
    return Offer(part, sentence, switch, form.add("data.text_as", gr.State(DataSpec().text_as)))


def _lengths(form: Form) -> tuple[gr.HTML, list[Any]]:
    """Lay out how long rows are, beside what decides how long they may be."""
    default = DataSpec()
    with gr.Row(elem_id="data-lengths"):
        with gr.Column(scale=3, min_width=300):
            chart = length_chart.build()
        with gr.Column(scale=2, min_width=260):
            length = form.add(
                "data.max_length",
                slider(
                    8, 4096, value=default.max_length, step=8, label=text("max_length"),
                    info=hint("data.max_length"), elem_id="max-length",
                ),
            )  # fmt: skip
            names = typing.get_args(typing.get_type_hints(DataSpec)["truncation"])
            truncation = form.add(
                "data.truncation",
                gr.Radio(
                    [(text(f"truncation_{name}"), name) for name in names],
                    value=default.truncation, label=text("truncation"),
                    info=hint("data.truncation"), elem_id="truncation",
                ),
            )  # fmt: skip
            fraction = form.add(
                "data.eval_fraction",
                slider(
                    0, 0.5, value=default.eval_fraction, step=0.01, label=text("eval_fraction"),
                    info=hint("data.eval_fraction"), elem_id="eval-fraction",
                ),
            )  # fmt: skip
    return chart, [length, truncation, fraction]


def _pieces(form: Form) -> tuple[gr.Accordion, gr.Slider, gr.Textbox]:
    default = DataSpec()
    with (
        gr.Accordion(
            text("pieces_part"), open=False, visible=False, elem_id="data-pieces"
        ) as pieces,
        gr.Row(),
    ):
        overlap = form.add(
            "data.chunk_overlap",
            slider(
                **bounds("data.chunk_overlap"), value=default.chunk_overlap, step=0.05,
                label=text("chunk_overlap"), info=hint("data.chunk_overlap"),
                elem_id="chunk-overlap",
            ),
        )  # fmt: skip
        marker = form.add(
            "data.cut_marker",
            gr.Textbox(
                default.cut_marker, label=text("cut_marker"), info=hint("data.cut_marker"),
                max_lines=1, elem_id="cut-marker",
            ),
        )  # fmt: skip
    return pieces, overlap, marker


def example(name: str) -> Path:
    """Return a shipped example file."""
    return ASSETS / "examples" / EXAMPLES[name]
