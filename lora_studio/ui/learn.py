"""Learn: the LoRA picture with one's own numbers, what NF4 does to real weights, short answers.

The browser draws both; the picture follows the sliders of rank and alpha without the server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.models.description import ModelInfo
from lora_studio.recipe import AdapterSpec
from lora_studio.ui import render
from lora_studio.ui.language import Voice, text
from lora_studio.ui.view import view
from lora_studio.ui.visitors import Door

# Filled in by the browser.
BRACES = {name: f"{{{name}}}" for name in ("r", "alpha", "d", "k", "few", "many", "saved", "scale")}
ANSWERS = ("rank", "alpha", "dropout", "targets", "bias", "limits")


class LearnPanel:
    """Lays the panel out and answers its button.

    Args:
        door: Opens the studio of a request.
    """

    def __init__(self, door: Door) -> None:
        self.door = door
        gr.HTML(text("learn_title"), elem_classes="ls-title")
        self.picture = picture()
        gr.HTML(text("nf4_title"), elem_classes="ls-title")
        gr.Markdown(text("nf4_why"), elem_classes="ls-quiet")
        self.show = gr.Button(text("nf4_show"), size="sm", elem_id="nf4-show")
        self.status = gr.HTML(elem_id="nf4-status")
        self.chart = view("nf4")
        for name in ANSWERS:
            with gr.Accordion(text(f"answer_{name}"), open=False, elem_id=f"answer-{name}"):
                gr.Markdown(text(f"answer_{name}_text"), elem_classes="ls-answer")

    def wire(self, source: gr.State, token: gr.Textbox) -> None:
        """Let the button look at the chosen model's weights.

        Args:
            source: The chosen model as a recipe names it.
            token: A Hub token, or empty.
        """
        self.show.click(
            self.nf4, [source, token], [self.status, self.chart], show_progress="hidden"
        )

    def nf4(self, source: Any, token: Any, request: gr.Request) -> Iterator[tuple[Any, Any]]:
        """Round one weight of the model to NF4 and show it before and after."""
        voice, studio = Voice(request), self.door.enter(request)
        if not source:
            yield render.note(voice("start_needs_model"), "warn"), gr.skip()
            return
        try:
            for event in studio.models.nf4(str(source), token=token or None):
                if "result" in event:
                    yield "", chart_value(event["result"], voice)
                else:
                    yield render.stage(event, voice), gr.skip()
        except StudioError as error:
            yield render.problem(error, voice), ""


def picture() -> gr.HTML:
    """Build the LoRA picture; its value is what `picture_value` returns."""
    return view("learn", elem_id="learn-picture")


def picture_value(info: ModelInfo | None, adapter: AdapterSpec, voice: Voice) -> str:
    """Return what the picture shows, as JSON; empty while there is no model.

    Args:
        info: The chosen model, whose layers give d and k.
        adapter: Rank and alpha to begin with.
        voice: The person's language.
    """
    if info is None:
        return ""
    modules = [
        {
            "name": group.path.rpartition("{}.")[2],
            "count": group.count,
            "d_in": group.d_in,
            "d_out": group.d_out,
        }
        for group in info.modules
    ]
    words = {
        "module": voice("learn_module"),
        "frozen": voice("learn_frozen"),
        "result": voice("learn_result"),
        "zero": voice("learn_zero"),
        "random": voice("learn_random"),
        "own": voice("learn_try"),
        "scale": voice("learn_scale", **BRACES),
        "scale_root": voice("learn_scale_root", **BRACES),
        "count": voice("learn_count", **BRACES),
        "more": voice("learn_count_more", **BRACES),
        "wide": voice("learn_wide", **BRACES, side="{side}"),
        "copies": voice("learn_copies", n="{n}"),
        "heard": voice("learn_heard", **BRACES),
    }
    seen = {
        "modules": modules,
        "r": adapter.r,
        "alpha": adapter.lora_alpha,
        "root": adapter.use_rslora,
        "words": words,
    }
    return json.dumps(seen, ensure_ascii=False)


def chart_value(found: Mapping[str, Any], voice: Voice) -> str:
    """Return the charts of a `WeightsHistogram`'s plain values, as JSON."""
    drawn = ("edges", "before", "after", "scaled_edges", "scaled", "levels", "shares")
    words = {
        "before": voice("nf4_before"),
        "after": voice("nf4_after"),
        "weights": voice("nf4_weights"),
        "scaled": voice("nf4_scaled"),
        "level": voice("nf4_level"),
        "share": voice("nf4_share"),
        "heard": voice("nf4_heard"),
        "shape": voice(
            "nf4_shape",
            tensor=found["tensor"],
            rows=f"{found['rows']:,}",
            columns=f"{found['columns']:,}",
            dtype=found["dtype"],
        ),
        "error": voice(
            "nf4_error",
            mean=f"{found['mean_error']:.2g}",
            relative=f"{100 * found['relative_error']:.2g}",
            before=found["bits_before"],
            after=f"{found['bits_after']:g}",
        ),
    }
    return json.dumps({name: found[name] for name in drawn} | {"words": words}, ensure_ascii=False)
