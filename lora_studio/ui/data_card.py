"""Card 2: the text to learn from, and the tokens it becomes."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from lora_studio.recipe import DataSpec, FormatName
from lora_studio.ui.controls import slider
from lora_studio.ui.form import Form
from lora_studio.ui.language import hint, text
from lora_studio.wording import ASSETS

EXTENSIONS = [".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".parquet"]
EXAMPLES = {"example_chat": "lighthouse.jsonl", "example_text": "notes.md"}
# With so few rows: enough steps to see an effect, in about four minutes on two cores.
EXAMPLE_SETTINGS = {
    "example_chat": {
        "data.max_length": 512,
        "training.num_train_epochs": 2,
        "training.learning_rate": 5e-4,
    },
    "example_text": {
        "data.max_length": 128,
        "training.num_train_epochs": 10,
        "training.learning_rate": 5e-4,
    },
}


@dataclass(frozen=True, slots=True)
class DataCard:
    """The components other cards and handlers need."""

    card: gr.Accordion
    files: gr.File
    pasted: gr.Textbox
    add: gr.Button
    examples: dict[str, gr.Button]
    report: gr.HTML
    names: gr.State
    """Names of the chosen files on the shelf."""
    found: gr.State
    """The last report, or None."""
    triggers: list[gr.components.Component]
    """The controls whose change makes another preview."""


def build(form: Form) -> DataCard:
    """Lay out the card."""
    default = DataSpec()
    with gr.Accordion(
        text("card_data"), open=True, elem_id="card-data", elem_classes="ls-card"
    ) as card:
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
        with gr.Row():
            examples = {
                name: gr.Button(text(name), size="sm", variant="secondary", elem_id=name)
                for name in EXAMPLES
            }
        report = gr.HTML(elem_id="data-report")
        with gr.Row():
            kind = form.add(
                "data.format",
                gr.Dropdown(
                    [(text(f"format_{name}"), name) for name in typing.get_args(FormatName)],
                    value=default.format,
                    label=text("data_format"),
                    info=hint("data.format"),
                    elem_id="data-format",
                ),
            )
        with gr.Row():
            length = form.add(
                "data.max_length",
                slider(
                    8, 4096, value=default.max_length, step=8, label=text("max_length"),
                    info=hint("data.max_length"), elem_id="max-length",
                ),
            )  # fmt: skip
            fraction = form.add(
                "data.eval_fraction",
                slider(
                    0, 0.5, value=default.eval_fraction, step=0.01, label=text("eval_fraction"),
                    info=hint("data.eval_fraction"),
                ),
            )  # fmt: skip
    return DataCard(
        card, files, pasted, add, examples, report, gr.State([]), gr.State(None),
        [kind, length, fraction],
    )  # fmt: skip


def example(name: str) -> Path:
    """Return a shipped example file."""
    return ASSETS / "examples" / EXAMPLES[name]
