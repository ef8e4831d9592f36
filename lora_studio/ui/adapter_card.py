"""Card 3: what it is for, and the adapter that follows from it, every control with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.hardware import Hardware, default_precision, precisions
from lora_studio.models.description import ModelInfo
from lora_studio.outlook import Outlook
from lora_studio.recipe import AdapterSpec, Recipe
from lora_studio.ui import goals, layer_choice, method_choice, parameter_table
from lora_studio.ui.controls import slider
from lora_studio.ui.form import Form
from lora_studio.ui.language import Voice, hint, text
from lora_studio.ui.render import note
from lora_studio.wording import say


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """The components the page's handlers need."""

    goals: goals.GoalPanel
    details: gr.Column
    """Everything beside the goals; out of sight in the simple mode."""
    layers: layer_choice.LayerChoice
    methods: method_choice.MethodChoice
    table: gr.HTML
    """What is trained, kind of layer by kind."""
    why: gr.HTML
    """The sentence on the chosen precision."""

    @property
    def outputs(self) -> list[Any]:
        """What `shown` gives values for."""
        return [*self.methods.outputs, self.layers.said, self.table, self.why]


def build(form: Form, hardware: Hardware, info: ModelInfo | None) -> AdapterCard:
    """Lay out the card."""
    with gr.Accordion(
        text("card_adapter"), open=True, elem_id="card-adapter", elem_classes="ls-card"
    ):
        panel = goals.build()
        with gr.Column(visible=False, elem_id="adapter-details") as details:
            _strength(form)
            layers = layer_choice.build(form, info)
            with gr.Accordion(text("parameters_table"), open=False, elem_id="parameters"):
                table = gr.HTML(elem_id="parameter-table", padding=False)
            with gr.Accordion(text("more_adapter"), open=False, elem_id="more-adapter"):
                methods = method_choice.build(form)
                _dropout(form)
            _precision(form, hardware)
            why = gr.HTML(elem_id="precision-why")
    return AdapterCard(panel, details, layers, methods, table, why)


def _strength(form: Form) -> None:
    default = AdapterSpec()
    with gr.Row():
        form.add(
            "adapter.r",
            slider(
                1, 256, value=default.r, step=1, label=text("r"), info=hint("adapter.r"),
                elem_id="r",
            ),
        )  # fmt: skip
        form.add(
            "adapter.lora_alpha",
            slider(
                1, 512, value=default.lora_alpha, step=1, label="lora_alpha",
                info=hint("adapter.lora_alpha"), elem_id="lora-alpha",
            ),
        )  # fmt: skip


def _dropout(form: Form) -> None:
    form.add(
        "adapter.lora_dropout",
        slider(
            0, 0.5, value=AdapterSpec().lora_dropout, step=0.01, label="lora_dropout",
            info=hint("adapter.lora_dropout"), elem_id="lora-dropout",
        ),
    )  # fmt: skip


def _precision(form: Form, hardware: Hardware) -> None:
    usable = [
        (text(f"precision_{found.name}"), found.name)
        for found in precisions(hardware)
        if found.available
    ]
    form.add(
        "precision",
        gr.Radio(
            [(text("precision_auto"), "auto"), *usable], value="auto", label=text("precision"),
            info=hint("precision"), elem_id="precision",
        ),
    )  # fmt: skip


def shown(outlook: Outlook, recipe: Recipe, hardware: Hardware, voice: Voice) -> list[Any]:
    """Return what the settings make of the card, in the order of `AdapterCard.outputs`."""
    counted = outlook.estimate.parameters if outlook.estimate else None
    return [
        *method_choice.shown(recipe, outlook.offers, voice),
        layer_choice.said_of(outlook.info, recipe.adapter, voice),
        parameter_table.table(counted, voice) if counted else "",
        precision_why(recipe.precision, hardware, voice),
    ]


def precision_why(chosen: str, hardware: Hardware, voice: Voice) -> str:
    """Return why a precision suits this machine, and why the missing ones are not offered."""
    name = default_precision(hardware) if chosen == "auto" else chosen
    said, not_here = "", []
    for precision in precisions(hardware):
        sentence = say(precision.reason_key, voice.language, **precision.values)
        if precision.name == name:
            said = sentence
        elif not precision.available:
            not_here.append(sentence)
    return note(" ".join([said, *not_here]), "good")
