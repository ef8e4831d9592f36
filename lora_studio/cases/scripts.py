"""A recipe as a script that runs elsewhere, with its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_studio.cases.data import Data
from lora_studio.cases.models import Models
from lora_studio.cases.planning import Planning
from lora_studio.errors import RunError
from lora_studio.exports.script import write_script
from lora_studio.files import reason_of
from lora_studio.recipe import Recipe

SCRIPT = "train.py"
"""What an exported recipe's script is called."""


class Scripts:
    """Writes a recipe as what runs without this program.

    Args:
        models, data, planning: What is known of the model, its rows and this machine.
        device: Whose number of held-out rows a training would take.
    """

    def __init__(self, models: Models, data: Data, planning: Planning, device: str) -> None:
        self._models = models
        self._data = data
        self._planning = planning
        self._device = device

    def text(self, recipe: Recipe, language: str = "en") -> str:
        """Return a recipe as a Python script that runs without this program.

        Raises:
            RecipeError: If it starts in a way that no script is written for, or the model does
                not have what it names.
            ModelError: If this machine cannot use its number format.
        """
        info = self._models.known(recipe.model.source)
        precision = self._planning.precision(recipe)
        return write_script(recipe, precision=precision, info=info, language=language)

    def write(
        self, recipe: Recipe, folder: Path, language: str = "en", *, token: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Write a recipe's script into a folder, with the rows it trains on and the recipe.

        Yields:
            As `Data.preview`; the result is that of `lora_studio.exports.rows.write_rows`.

        Raises:
            StudioError: As `text` and `Data.preview`, or if the folder does not take it.
        """
        self._data.check(recipe)
        if self._models.known(recipe.model.source) is None:
            for event in self._models.inspect(recipe.model.source, token=token):
                if "result" not in event:
                    yield event
        text = self.text(recipe, language)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / SCRIPT).write_text(text, encoding="utf-8")
            (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
            yield from self._data.write(recipe, folder, self._device, token=token)
        except OSError as error:
            raise RunError(
                "exports.not_written", folder=str(folder), reason=reason_of(error)
            ) from error
