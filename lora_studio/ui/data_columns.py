"""What each column of a table is, how rows are read, and how turns are written."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.recipe import CLASSIFICATION, PARTS, ChatTemplateName, DataSpec, FormatName
from lora_studio.ui.controls import dropdown
from lora_studio.ui.form import Form
from lora_studio.ui.language import Voice, hint, text

ORDER = ("question", "context", "answer", "system", "turns", "text", "label")
TO_SORT = ("text", "label")
"""The parts of a classification; all but the label are those of other formats."""
ENCODINGS = ("utf-8", "utf-16", "cp949", "shift_jis", "gb18030", "latin-1")
TEMPLATE = "{{title}}: {{body}}"
MENDED_HERE = frozenset(
    {
        "data.parts_clash",
        "data.document_has_no_columns",
        "data.no_labels_in_document",
        "data.other_encoding",
        "data.wrong_encoding",
        "data.template_syntax",
        "data.template_forbidden",
        "data.template_too_long",
    }
)
"""Errors beside those about columns that a setting of this part mends."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The components of this part."""

    part: gr.Accordion
    chosen: gr.State
    """`data.columns` of the recipe: empty while the guess is good enough."""
    known: gr.State
    """Names of the columns, those of the last readable data."""
    none: gr.HTML
    table: gr.Column
    pickers: dict[str, gr.Dropdown]
    guess: gr.Button
    template: gr.Textbox
    format: gr.Dropdown
    encoding: gr.Dropdown
    chat_template: gr.Dropdown

    @property
    def changing(self) -> list[Any]:
        """The controls of which each change makes another preview."""
        return [self.chosen, self.format, self.encoding, self.chat_template]

    @property
    def shown(self) -> list[Any]:
        """What `show` and `show_problem` may change."""
        return [
            self.part, self.known, self.none, self.table, *self.pickers.values(), self.encoding,
            self.chat_template,
        ]  # fmt: skip

    def show(self, found: Mapping[str, Any], data: DataSpec, voice: Voice) -> dict[Any, Any]:
        """Return what the components show of a report: the guess, or what was chosen."""
        known = list(dict.fromkeys(name for names in found["columns"].values() for name in names))
        return {
            self.part: gr.skip(),
            **self._table(known, data.columns or guessed(found), data.format, voice),
            self.encoding: gr.Dropdown(info=encodings(found["encodings"], voice)),
            self.chat_template: gr.Dropdown(visible=bool(found["own_template"])),
        }

    def show_problem(
        self, error: StudioError, known: Sequence[str], data: DataSpec, voice: Voice
    ) -> dict[Any, Any]:
        """Return what the components show where the rows could not be understood."""
        named = columns_of(error)
        if not named and error.key not in MENDED_HERE:
            return {}
        columns = in_order([*named, *data.columns.values()], known) if named else known
        return {
            self.part: gr.Accordion(open=True),
            **self._table(columns, data.columns, data.format, voice),
        }

    def _table(
        self, known: Sequence[str], parts: Mapping[str, str], format_name: FormatName, voice: Voice
    ) -> dict[Any, Any]:
        shown = TO_SORT if format_name == CLASSIFICATION else ORDER[:-1]
        choices = [(voice("column_unused"), ""), *((name, name) for name in known)]
        pickers = {}
        for part, picker in self.pickers.items():
            column = parts.get(part, "")
            # A chosen column that is not there is shown too, with the sentence about it.
            more = [(column, column)] if column and column not in known else []
            pickers[picker] = gr.Dropdown(
                choices=[*choices, *more], value=column, visible=part in shown
            )
        return {
            self.known: list(known),
            self.none: gr.HTML(visible=not known),
            self.table: gr.Column(visible=bool(known)),
            **pickers,
        }


def build(form: Form) -> Columns:
    """Lay out this part of the card."""
    with gr.Accordion(text("columns_part"), open=False, elem_id="data-columns") as part:
        none = gr.HTML(text("columns_none"), elem_classes="ls-quiet")
        with gr.Column(visible=False) as table:
            pickers = {}
            for three in (ORDER[:3], ORDER[3:]):
                with gr.Row():
                    for name in three:
                        pickers[name] = dropdown(
                            [(text("column_unused"), "")],
                            value="",
                            label=text(f"column_{name}"),
                            min_width=140,
                            visible=name != "label",
                            elem_id=f"column-{name}",
                        )
            guess = gr.Button(text("columns_guess"), size="sm", elem_id="columns-guess")
            template = form.add(
                "data.template",
                gr.Textbox(
                    DataSpec().template, label=text("template"), info=hint("data.template"),
                    placeholder=TEMPLATE, lines=1, max_lines=6, elem_id="data-template",
                ),
            )  # fmt: skip
        with gr.Row():
            format_ = form.add("data.format", _format())
            encoding = form.add("data.encoding", _encoding())
            chat_template = form.add("data.chat_template", _chat_template())
    return Columns(
        part=part, chosen=form.add("data.columns", gr.State({})), known=gr.State([]), none=none,
        table=table, pickers=pickers, guess=guess, template=template, format=format_,
        encoding=encoding, chat_template=chat_template,
    )  # fmt: skip


def _format() -> gr.Dropdown:
    return gr.Dropdown(
        [(text(f"format_{name}"), name) for name in typing.get_args(FormatName)],
        value=DataSpec().format,
        label=text("data_format"),
        info=hint("data.format"),
        elem_id="data-format",
    )


def _encoding() -> gr.Dropdown:
    names = [(text("encoding_auto"), "auto"), *((name, name) for name in ENCODINGS)]
    return dropdown(
        names,
        value=DataSpec().encoding,
        label=text("encoding"),
        info=hint("data.encoding"),
        elem_id="data-encoding",
    )


def _chat_template() -> gr.Dropdown:
    return gr.Dropdown(
        list(typing.get_args(ChatTemplateName)),
        value=DataSpec().chat_template,
        label=text("chat_template"),
        info=hint("data.chat_template"),
        visible=False,
        elem_id="chat-template",
    )


def chosen(values: Sequence[Any]) -> dict[str, str]:
    """Return `data.columns` as the pickers, in their order, show it."""
    return {
        part: column
        for part, column in zip(ORDER, values, strict=True)
        if isinstance(column, str) and column
    }


def guessed(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the column of each part, of the first file that has one."""
    parts: dict[str, str] = {}
    for columns in found["parts"].values():
        for part, column in columns.items():
            if part in PARTS:
                parts.setdefault(part, column)
    return parts


def columns_of(error: StudioError) -> list[str]:
    """Return the names of the columns that an error is about."""
    return [str(name) for name in error.values.get("columns", ())]


def in_order(columns: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return columns without repeats in the order they were known in, new ones last.

    An open list whose columns change places under the pointer gives another one than is clicked.
    """
    return [name for name in dict.fromkeys([*known, *columns]) if name in columns]


def encodings(found: Mapping[str, str | None], voice: Voice) -> str:
    """Return the sentence about the encodings that were found."""
    names = dict.fromkeys(name for name in found.values() if name)
    return voice("encoding_found", names=", ".join(names)) if names else voice("encoding_none")
