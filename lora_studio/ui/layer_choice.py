"""Which layers get an adapter: presets, names, a range of blocks, and what few people change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.errors import RecipeError
from lora_studio.models.accounting import presets, problems, saved_bytes, warnings
from lora_studio.models.description import ModelInfo, ranges
from lora_studio.recipe import AdapterSpec
from lora_studio.ui import numbers
from lora_studio.ui.controls import slider
from lora_studio.ui.form import EXPRESSION, Form, read_numbers
from lora_studio.ui.language import Voice, hint, text
from lora_studio.ui.render import note

OWN = "own"
"""The preset that stands for none of them."""
ModelOf = Callable[[gr.Request, Any], ModelInfo | None]
"""Finds the description of the model that a page shows."""


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """The components of this part."""

    preset: gr.Radio
    modules: gr.CheckboxGroup
    first: gr.Slider
    last: gr.Slider
    said: gr.HTML
    """Problems and warnings about the choice, beside it."""
    layers: gr.Textbox
    ranks: gr.Textbox
    alphas: gr.Textbox
    whole: gr.CheckboxGroup
    expression: gr.Textbox

    @property
    def of_model(self) -> list[Any]:
        """What another model changes, in the order of `for_model`."""
        return [
            self.preset, self.modules, self.first, self.last, self.layers, self.whole,
            self.expression,
        ]  # fmt: skip


def build(form: Form, info: ModelInfo | None) -> LayerChoice:
    """Lay out this part of the adapter card.

    Args:
        form: Gets the controls of six settings.
        info: The model the page begins with.
    """
    names = list(info.target_names) if info else []
    offered = [*(presets(info) if info else ()), OWN]
    preset = gr.Radio(
        [(text(f"preset_{name}"), name) for name in offered],
        value=preset_of(names, info),
        label=text("preset"),
        info=text("preset_why"),
        elem_id="preset",
    )
    modules = form.add(
        "adapter.target_modules",
        _checkboxes(names, names, "target_modules", "adapter.target_modules"),
    )
    top = info.layers - 1 if info else 0
    with gr.Row():
        first = slider(
            0, top, value=0, step=1, label=text("layer_first"), info=text("layer_why"),
            elem_id="layer-first",
        )  # fmt: skip
        last = slider(
            0, top, value=top, step=1, label=text("layer_last"), info=text("layer_why"),
            elem_id="layer-last",
        )  # fmt: skip
    said = gr.HTML(elem_id="layers-said", padding=False)
    with gr.Accordion(text("layers_advanced"), open=False, elem_id="layers-advanced"):
        layers = _line(form, "adapter.layers_to_transform", "0-11")
        with gr.Row():
            ranks = _line(form, "adapter.rank_pattern", "q_proj: 32, v_proj: 8")
            alphas = _line(form, "adapter.alpha_pattern", "q_proj: 64, v_proj: 16")
        whole = form.add(
            "adapter.modules_to_save",
            _checkboxes(
                whole_choices(info) if info else [], [], "modules_to_save",
                "adapter.modules_to_save",
            ),
        )  # fmt: skip
        expression = form.add(
            EXPRESSION,
            gr.Textbox(
                label=text("expression"), info=text("expression_why"), max_lines=1,
                placeholder=r".*self_attn\.(q|v)_proj", elem_id="expression",
            ),
        )  # fmt: skip
    return LayerChoice(preset, modules, first, last, said, layers, ranks, alphas, whole, expression)


def wire(choice: LayerChoice, source: gr.State, model_of: ModelOf) -> None:
    """Let the controls move each other: preset and checkboxes, sliders and the line of layers.

    Args:
        choice: The components.
        source: The chosen model, as a recipe names it.
        model_of: Finds its description.
    """
    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False}

    def on_preset(name: Any, chosen: Any, request: gr.Request) -> Any:
        return of_preset(name, model_of(request, chosen))

    def on_modules(names: Any, expression: Any, chosen: Any, request: gr.Request) -> str:
        return OWN if expression else preset_of(names or (), model_of(request, chosen))

    def on_range(first: Any, last: Any, chosen: Any, request: gr.Request) -> Any:
        return line_of(first, last, model_of(request, chosen))

    def on_line(line: Any, chosen: Any, request: gr.Request) -> list[Any]:
        return ends_of(line, model_of(request, chosen))

    # What a person moves on while it is followed is followed too, or it would be moved back.
    moved = quiet | {"trigger_mode": "always_last"}
    choice.preset.input(
        on_preset, [choice.preset, source], [choice.modules, choice.expression], **moved
    )
    gr.on(
        [choice.modules.change, choice.expression.change],
        on_modules, [choice.modules, choice.expression, source], choice.preset, **quiet,
    )  # fmt: skip
    gr.on(
        [choice.first.input, choice.last.input],
        on_range, [choice.first, choice.last, source], choice.layers, **moved,
    )  # fmt: skip
    choice.layers.change(on_line, [choice.layers, source], [choice.first, choice.last], **quiet)


def for_model(info: ModelInfo, voice: Voice) -> list[Any]:
    """Return what `LayerChoice.of_model` shows for another model: all of its linear layers."""
    names = list(info.target_names)
    top = info.layers - 1
    return [
        gr.Radio(
            choices=[(voice(f"preset_{name}"), name) for name in [*presets(info), OWN]],
            value=preset_of(names, info),
        ),
        gr.CheckboxGroup(choices=names, value=names),
        gr.Slider(value=0, maximum=top),
        gr.Slider(value=top, maximum=top),
        "",
        gr.CheckboxGroup(choices=whole_choices(info), value=[]),
        "",
    ]


def whole_choices(info: ModelInfo) -> list[tuple[str, str]]:
    """Return the modules that may be trained whole, each with what it adds to the file."""
    return [
        (f"{module.name} · {numbers.size(saved_bytes(info, module.name))}", module.name)
        for module in info.whole_modules
    ]


def of_preset(name: Any, info: ModelInfo | None) -> tuple[Any, Any]:
    """Return the checkboxes and the expression of a preset; one's own choice leaves them."""
    names = presets(info).get(str(name)) if info else None
    return (gr.skip(), gr.skip()) if names is None else (list(names), "")


def preset_of(names: Sequence[str], info: ModelInfo | None) -> str:
    """Return the preset that chooses just these names."""
    found = presets(info) if info else {}
    return next((name for name, chosen in found.items() if set(chosen) == set(names)), OWN)


def line_of(first: Any, last: Any, info: ModelInfo | None) -> Any:
    """Return a range of layers as the text box has it; every layer is an empty line."""
    numbers_ = [value for value in (first, last) if isinstance(value, (int, float))]
    if info is None or len(numbers_) < 2:
        return gr.skip()
    low, high = (min(max(int(value), 0), info.layers - 1) for value in sorted(numbers_))
    whole = (low, high) == (0, info.layers - 1)
    return "" if whole else ranges(range(low, high + 1))


def ends_of(line: Any, info: ModelInfo | None) -> list[Any]:
    """Return both sliders for a line of layers; what is no range of this model leaves them."""
    found = read_numbers(line) if isinstance(line, str) else line
    if info is None or not isinstance(found, list):
        return [gr.skip(), gr.skip()]
    top = info.layers - 1
    low, high = (min(found), max(found)) if found else (0, top)
    if high > top:
        return [gr.skip(), gr.skip()]
    return [gr.Slider(value=low, maximum=top), gr.Slider(value=high, maximum=top)]


def said_of(info: ModelInfo | None, adapter: AdapterSpec, voice: Voice) -> str:
    """Return what is wrong with a choice, else what is worth a second look."""
    if info is None:
        return ""
    wrong = problems(info, adapter)
    if wrong:
        return note("\n".join(item.say(voice.language) for item in wrong))
    odd = warnings(info, adapter)
    return note("\n".join(item.say(voice.language) for item in odd), "warn") if odd else ""


def said_of_error(error: RecipeError, voice: Voice) -> str:
    """Return the problems of a recipe that are about the adapter."""
    found = [
        problem.say(voice.language)
        for problem in error.problems
        if str(problem.values.get("name", "")).startswith("adapter.")
        or problem.key in PROBLEMS_HERE
    ]
    return note("\n".join(found)) if found else ""


PROBLEMS_HERE = frozenset(
    {
        "recipe.no_target_modules",
        "recipe.not_a_pattern",
        "recipe.pattern_too_open",
        "recipe.negative_layer",
    }
)
"""Problems of a recipe that these controls mend and that name no setting."""


def _checkboxes(choices: Sequence[Any], value: list[str], name: str, path: str) -> Any:
    control = gr.CheckboxGroup(
        list(choices), value=value, label=text(name), info=hint(path),
        elem_id=name.replace("_", "-"),
    )  # fmt: skip
    # Its choices change with the model; what is none of them is for the recipe to refuse.
    control.preprocess = lambda payload: payload
    return control


def _line(form: Form, path: str, example: str) -> Any:
    name = path.rpartition(".")[2]
    return form.add(
        path,
        gr.Textbox(
            "", label=text(name), info=hint(path), placeholder=example, max_lines=1,
            elem_id=name.replace("_", "-"),
        ),
    )  # fmt: skip
