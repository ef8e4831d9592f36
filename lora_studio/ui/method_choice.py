"""Which way of adapting: what goes together may be chosen, the rest is grey and says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, get_args

import gradio as gr

from lora_studio.methods import LABELS, Offer
from lora_studio.recipe import AdapterSpec, BiasName, InitName, Recipe
from lora_studio.ui.controls import dropdown
from lora_studio.ui.form import Form
from lora_studio.ui.language import Voice, hint, text

SWITCHES = {"rslora": "adapter.use_rslora", "dora": "adapter.use_dora"}
"""Methods that are one checkbox, and their settings."""


@dataclass(frozen=True, slots=True)
class MethodChoice:
    """The controls whose choices depend on each other."""

    rslora: gr.Checkbox
    dora: gr.Checkbox
    start: gr.Dropdown
    bias: gr.Dropdown
    reasons: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        """What `shown` gives values for."""
        return [self.rslora, self.dora, self.start, self.bias, self.reasons]


def build(form: Form) -> MethodChoice:
    """Lay out the methods beside plain LoRA."""
    default = AdapterSpec()
    with gr.Row():
        switches = {
            name: form.add(
                path,
                gr.Checkbox(
                    default.use_rslora if name == "rslora" else default.use_dora,
                    label=LABELS[name],
                    info=hint(path),
                    elem_id=f"use-{name}",
                ),
            )
            for name, path in SWITCHES.items()
        }
        form.add(
            "training.loraplus_lr_ratio",
            gr.Number(
                None, label=text("loraplus_lr_ratio"), info=hint("training.loraplus_lr_ratio"),
                elem_id="loraplus-lr-ratio",
            ),
        )  # fmt: skip
    with gr.Row():
        start = form.add(
            "adapter.init_lora_weights",
            dropdown(
                [(text(f"init_{name}"), name) for name in get_args(InitName)],
                value=default.init_lora_weights, label=text("init_lora_weights"),
                info=hint("adapter.init_lora_weights"), elem_id="init-lora-weights",
            ),
        )  # fmt: skip
        bias = form.add(
            "adapter.bias",
            dropdown(
                [(text(f"bias_{name}"), name) for name in get_args(BiasName)],
                value=default.bias, label=text("bias"), info=hint("adapter.bias"), elem_id="bias",
            ),
        )  # fmt: skip
    reasons = gr.HTML(elem_id="methods-not-offered", padding=False)
    return MethodChoice(switches["rslora"], switches["dora"], start, bias, reasons)


def shown(recipe: Recipe, offers: Mapping[str, Offer], voice: Voice) -> list[Any]:
    """Return what the controls become: what may not be chosen is grey, with the reason beneath.

    What is chosen stays choosable, so that it can be taken back.
    """
    adapter = recipe.adapter
    return [
        gr.Checkbox(interactive=offers["rslora"].is_offered or adapter.use_rslora),
        gr.Checkbox(interactive=offers["dora"].is_offered or adapter.use_dora),
        _offered("init", get_args(InitName), adapter.init_lora_weights, offers, voice),
        _offered("bias", get_args(BiasName), adapter.bias, offers, voice),
        _reasons(offers, voice),
    ]


def _offered(
    kind: str, names: tuple[str, ...], chosen: str, offers: Mapping[str, Offer], voice: Voice
) -> gr.Dropdown:
    """Return a dropdown of what may be chosen now, and of what is."""

    def is_offered(name: str) -> bool:
        offer = offers.get(f"bias_{name}" if kind == "bias" else name)
        return offer is None or offer.is_offered or name == chosen

    return gr.Dropdown(
        choices=[(voice(f"{kind}_{name}"), name) for name in names if is_offered(name)]
    )


def _reasons(offers: Mapping[str, Offer], voice: Voice) -> str:
    """Return why some methods cannot be chosen beside the others."""
    rows = "".join(
        f"<li><b>{escape(LABELS[offer.name])}</b> {escape(offer.reason.say(voice.language))}</li>"
        for offer in offers.values()
        if offer.reason is not None
    )
    if not rows:
        return ""
    title = escape(voice("methods_not_offered"))
    return f'<div class="ls-quiet ls-not-offered"><p>{title}</p><ul>{rows}</ul></div>'
