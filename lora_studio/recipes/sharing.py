"""A recipe as others may have it: without folders, prompts and addresses of its owner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.recipe import HubSpec, LaunchSpec, Recipe
from lora_studio.recipes.upgrade import read_recipe

NAME = "recipe.yaml"
"""What a recipe is called that lies beside an adapter."""


def shareable(recipe: Recipe, *, names_dataset: bool = False) -> Recipe:
    """Return a recipe without what is the person's own.

    Args:
        recipe: As it was trained with.
        names_dataset: Whether its dataset of the Hub is everybody's to see; else its name is left
            out.
    """
    source = recipe.model.source
    named = Path(source).name if Path(source).is_absolute() else source
    kept = recipe.with_files([Path(file).name for file in recipe.data.files])
    return replace(
        kept,
        data=kept.data if names_dataset else replace(kept.data, hub=HubSpec()),
        model=replace(recipe.model, source=named),
        launch=LaunchSpec(),
        prompts=(),
    )


def read_beside(adapter: Path) -> Recipe | None:
    """Return the recipe that lies in an adapter's folder, None where none can be read."""
    try:
        return read_recipe((adapter / NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, StudioError):
        return None
