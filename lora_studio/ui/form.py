"""The page's controls as a recipe, and a recipe as values of the page's controls."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import gradio as gr

from lora_studio.models.description import numbers_in, ranges
from lora_studio.recipe import ALL_LINEAR, BOUNDS, Recipe

PROMPTS = 2
LISTS = frozenset({"data.hub.columns"})
"""Settings that are lists in a recipe and one line with commas in a text box."""
NUMBERS = frozenset({"adapter.layers_to_transform"})
"""Settings that are whole numbers in a recipe and ranges in a text box, as `0-3,5`."""
PAIRS = frozenset({"adapter.rank_pattern", "adapter.alpha_pattern"})
"""Settings that are names with numbers in a recipe and a line in a text box, as `q_proj: 32`."""
EXPRESSION = "adapter.target_modules.expression"
"""A second control of `adapter.target_modules`: an expression, which counts where it is filled."""
MOST_NUMBERS = 10_000
_PAIR = re.compile(r"\s*(\S.*?)\s*:\s*(\d+)\s*(?:,|\n|$)")


@dataclass(slots=True)
class Form:
    """The controls by the dotted path of the setting each of them holds, as `adapter.r`.

    Two settings have several controls: `prompts.0` and `prompts.1` are the two questions, and
    `EXPRESSION` stands beside the checkboxes of the target modules.
    """

    controls: dict[str, Any] = field(default_factory=dict)

    def add(self, path: str, control: Any) -> Any:
        """Enter a control and return it."""
        self.controls[path] = control
        return control

    @property
    def inputs(self) -> list[Any]:
        """The controls in the order in which `recipe` takes their values."""
        return list(self.controls.values())

    def recipe(self, values: Sequence[Any], *, source: str, files: Sequence[str]) -> Recipe:
        """Build the recipe that the controls show.

        Args:
            values: Values of `inputs`, as Gradio hands them to a handler.
            source: The chosen model.
            files: Paths of the uploads, made by the server.

        Raises:
            RecipeError: Naming everything that does not fit; nothing of it is trusted.
        """
        tree: dict[str, Any] = {"model": {"source": source}, "data": {"files": list(files)}}
        prompts: list[str] = []
        expression = ""
        for path, value in zip(self.controls, values, strict=True):
            if path.startswith("prompts."):
                prompts += [value.strip()] if isinstance(value, str) and value.strip() else []
                continue
            if path == EXPRESSION:
                expression = value.strip() if isinstance(value, str) else ""
                continue
            *parents, name = path.split(".")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[name] = _read(path, value)
        if expression:
            tree.setdefault("adapter", {})["target_modules"] = expression
        tree["prompts"] = prompts
        return Recipe.from_dict(tree)

    def values(
        self,
        recipe: Recipe,
        module_names: Sequence[str],
        whole: Sequence[tuple[str, str]] = (),
    ) -> list[Any]:
        """Return what the controls show for a recipe, in the order of `inputs`.

        Args:
            recipe: The recipe to show.
            module_names: All target modules of its model.
            whole: Labels and names of the modules it may train whole; none leaves them as shown.
        """
        return [
            _saved(recipe, whole)
            if path == "adapter.modules_to_save"
            else self._value(recipe, path, module_names)
            for path in self.controls
        ]

    def _value(self, recipe: Recipe, path: str, module_names: Sequence[str]) -> Any:
        if path.startswith("prompts."):
            number = int(path.removeprefix("prompts."))
            return recipe.prompts[number] if number < len(recipe.prompts) else ""
        if path == EXPRESSION:
            targets = recipe.adapter.target_modules
            return targets if isinstance(targets, str) and targets != ALL_LINEAR else ""
        value = recipe.value(path)
        if path == "adapter.target_modules":
            named = [] if isinstance(value, str) else list(value)
            chosen = list(module_names) if value == ALL_LINEAR else named
            # A name the model does not have is shown too, with the sentence about it.
            known = list(dict.fromkeys([*module_names, *chosen]))
            return gr.CheckboxGroup(choices=known, value=chosen)
        if path in LISTS:
            return ", ".join(value)
        if path in NUMBERS:
            return ranges(value)
        if path in PAIRS:
            return ", ".join(f"{name}: {number}" for name, number in value.items())
        if isinstance(value, (Mapping, tuple)):
            return dict(value) if isinstance(value, Mapping) else list(value)
        control = self.controls[path]
        if isinstance(control, gr.Dropdown) and value not in [
            known for _, known in control.choices
        ]:
            return gr.Dropdown(choices=[*control.choices, (value, value)], value=value)
        if isinstance(control, gr.Slider) and value > control.maximum:
            return gr.Slider(value=value, maximum=value)
        return value


def _saved(recipe: Recipe, whole: Sequence[tuple[str, str]]) -> gr.CheckboxGroup:
    chosen = list(recipe.adapter.modules_to_save)
    if not whole:
        return gr.CheckboxGroup(value=chosen)
    known = {name for _, name in whole}
    more = [(name, name) for name in chosen if name not in known]
    return gr.CheckboxGroup(choices=[*whole, *more], value=chosen)


def _read(path: str, value: Any) -> Any:
    """Return a control's value as the recipe has it; what cannot be read is left to be refused."""
    if not isinstance(value, str):
        return value
    if path in LISTS:
        return [item.strip() for item in value.split(",") if item.strip()]
    if path in NUMBERS:
        return read_numbers(value)
    return read_pairs(value) if path in PAIRS else value


def read_numbers(line: str) -> list[int] | str:
    """Return the numbers of a line such as `0-3, 5`, or the line where it is none."""
    written = "".join(line.split())
    try:
        numbers = list(islice(numbers_in(written), MOST_NUMBERS + 1)) if written else []
    except ValueError:
        return line
    return numbers if len(numbers) <= MOST_NUMBERS else line


def read_pairs(line: str) -> dict[str, int] | str:
    """Return the names and numbers of `q_proj: 32, v_proj: 8`, or the line where it is none."""
    pairs = list(_PAIR.finditer(line.strip()))
    if "".join(pair[0] for pair in pairs) != line.strip():
        return line
    return {pair[1]: int(pair[2]) for pair in pairs}


def bounds(path: str) -> Mapping[str, float]:
    """Return a setting's ends as the keyword arguments of a slider or number box."""
    low, high = BOUNDS[path]
    return {"minimum": low, "maximum": high}
