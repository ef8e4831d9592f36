"""The page's controls as a recipe, and a recipe as values of the page's controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from lora_studio.recipe import ALL_LINEAR, BOUNDS, Recipe

PROMPTS = 2
LISTS = frozenset({"data.hub.columns"})
"""Settings that are lists in a recipe and one line with commas in a text box."""


@dataclass(slots=True)
class Form:
    """The controls by the dotted path of the setting each of them holds, as `adapter.r`.

    Two settings have several controls: `prompts.0` and `prompts.1` are the two questions.
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
        for path, value in zip(self.controls, values, strict=True):
            if path.startswith("prompts."):
                prompts += [value.strip()] if isinstance(value, str) and value.strip() else []
                continue
            *parents, name = path.split(".")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[name] = _items(value) if path in LISTS else value
        tree["prompts"] = prompts
        return Recipe.from_dict(tree)

    def values(self, recipe: Recipe, module_names: Sequence[str]) -> list[Any]:
        """Return what the controls show for a recipe, in the order of `inputs`.

        Args:
            recipe: The recipe to show.
            module_names: All target modules of its model.
        """
        return [self._value(recipe, path, module_names) for path in self.controls]

    def _value(self, recipe: Recipe, path: str, module_names: Sequence[str]) -> Any:
        if path.startswith("prompts."):
            number = int(path.removeprefix("prompts."))
            return recipe.prompts[number] if number < len(recipe.prompts) else ""
        value = recipe.value(path)
        if path == "adapter.target_modules":
            chosen = list(module_names) if value == ALL_LINEAR else list(value)
            # A name the model does not have is shown too, with the sentence about it.
            known = list(dict.fromkeys([*module_names, *chosen]))
            return gr.CheckboxGroup(choices=known, value=chosen)
        if path in LISTS:
            return ", ".join(value)
        if isinstance(value, Mapping):
            return dict(value)
        control = self.controls[path]
        if isinstance(control, gr.Dropdown) and value not in [
            known for _, known in control.choices
        ]:
            return gr.Dropdown(choices=[*control.choices, (value, value)], value=value)
        if isinstance(control, gr.Slider) and value > control.maximum:
            return gr.Slider(value=value, maximum=value)
        return value


def _items(value: Any) -> Any:
    """Return the items of a line with commas; what is no text is left for the recipe to refuse."""
    if not isinstance(value, str):
        return value
    return [item.strip() for item in value.split(",") if item.strip()]


def bounds(path: str) -> Mapping[str, float]:
    """Return a setting's ends as the keyword arguments of a slider or number box."""
    low, high = BOUNDS[path]
    return {"minimum": low, "maximum": high}
