"""What a browser keeps of a page: its settings, so that a reload loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from lora_studio.errors import RecipeError
from lora_studio.recipe import Recipe
from lora_studio.recipes.upgrade import upgrade
from lora_studio.recommendations.table import GOAL_NAMES, GoalName
from lora_studio.ui.goals import ModeName, goal_of, mode_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The page's settings, without paths."""

    recipe: Recipe = field(default_factory=Recipe)
    names: Sequence[str] = ()
    """Of the uploads, as the shelf knows them."""
    goal: GoalName = GOAL_NAMES[0]
    mode: ModeName = "simple"

    @classmethod
    def read(cls, kept: Any) -> Self:
        """Read what a browser kept; anything unusable is a fresh start."""
        try:
            recipe = Recipe.from_dict(upgrade(dict(kept["recipe"]))).with_files(())
            names = tuple(name for name in kept["names"] if isinstance(name, str))
            goal, mode = goal_of(kept.get("goal")), mode_of(kept.get("mode", "all"))
        except (RecipeError, TypeError, KeyError, ValueError, AttributeError):
            return cls()
        return cls(recipe=recipe, names=names, goal=goal, mode=mode)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the browser."""
        return {
            "names": list(self.names),
            "recipe": self.recipe.to_dict(),
            "goal": self.goal,
            "mode": self.mode,
        }
