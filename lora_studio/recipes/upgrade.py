"""Recipe files of earlier versions in today's shape: what was renamed since.

Settings that came later need no step: a file that lacks one takes its default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lora_studio.errors import RecipeError, StudioError
from lora_studio.recipe import VERSION, Recipe, read_tree

Tree = dict[str, Any]


def read_recipe(text: str) -> Recipe:
    """Read the text of a recipe file, of this version or an earlier one.

    Raises:
        RecipeError: If it is of a later version, or as `Recipe.from_yaml`.
    """
    return Recipe.from_dict(upgrade(read_tree(text)))


def upgrade(tree: Mapping[str, Any]) -> Tree:
    """Return a recipe's tree with every setting where today's version has it.

    What is no recipe at all is left for `Recipe.from_dict` to refuse.

    Raises:
        RecipeError: If it is of a later version. That alone is said: what else looks wrong in it
            may be right there.
    """
    upgraded: Tree = _copied(tree)
    version = upgraded.get("version", 1)
    if not isinstance(version, int) or isinstance(version, bool):
        return upgraded
    if version > VERSION:
        problem = StudioError("recipe.version", version=version, known=VERSION)
        raise RecipeError.of([problem])
    for known, step in STEPS:
        if version <= known:
            step(upgraded)
    if 1 <= version <= VERSION:
        upgraded["version"] = VERSION
    return upgraded


def _name_the_check_for_answers(tree: Tree) -> None:
    """Move `data.missing_answers` to where all checks are; `refuse` is called `stop` there."""
    data = tree.get("data")
    if not isinstance(data, dict) or "missing_answers" not in data:
        return
    said = data.pop("missing_answers")
    checks = data.setdefault("checks", {})
    if isinstance(checks, dict):
        checks.setdefault("empty_answers", "stop" if said == "refuse" else said)


STEPS: tuple[tuple[int, Callable[[Tree], None]], ...] = ((1, _name_the_check_for_answers),)
"""The last version that may hold the old name, and the step that mends it; oldest first."""


def _copied(value: Any) -> Any:
    return {name: _copied(item) for name, item in value.items()} if _is_tree(value) else value


def _is_tree(value: Any) -> bool:
    return isinstance(value, Mapping)
