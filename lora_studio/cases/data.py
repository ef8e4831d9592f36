"""Data: encoded and shown before it is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_studio.cases.models import Models
from lora_studio.child import Child, InProcess
from lora_studio.errors import RecipeError, StudioError
from lora_studio.recipe import Recipe


class Data:
    """A recipe's rows, before anything is trained.

    Args:
        models: Says which models may be used here.
        bench: Serves a `Workbench`.
    """

    def __init__(self, models: Models, bench: Child | InProcess) -> None:
        self._models = models
        self._bench = bench

    def preview(self, recipe: Recipe, *, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Encode a recipe's data without training.

        Yields:
            `{"stage", "done", "total"}` while it works, at last `{"result": report}`, the plain
            values of `lora_studio.data.report.Report`.

        Raises:
            StudioError: If the model or the data cannot be used.
        """
        self.check(recipe)
        yield from self._bench.stream("preview", recipe=recipe, token=token)

    def rows(
        self,
        recipe: Recipe,
        part: str,
        page: int = 1,
        search: str = "",
        *,
        token: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Show ten rows of a recipe's data.

        Args:
            recipe: As in `preview`.
            part: `train`, `evaluation` or `skipped`.
            page: Which ten, from 1.
            search: Only rows that contain this.
            token: For a gated model or dataset.

        Yields:
            As `preview`; the result is that of `lora_studio.data.prepared.Prepared.page`.

        Raises:
            StudioError: As `preview`.
        """
        self.check(recipe)
        asked = {"recipe": recipe, "part": part, "page": page, "search": search}
        yield from self._bench.stream("rows", **asked, token=token)

    def write(
        self, recipe: Recipe, folder: Path, device: str, *, token: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Write a recipe's rows into a folder as text.

        Yields:
            As `preview`; the result is that of `lora_studio.exports.rows.write_rows`.

        Raises:
            StudioError: As `preview`.
        """
        asked = {"recipe": recipe, "folder": folder, "device": device}
        yield from self._bench.stream("write_rows", **asked, token=token)

    def check(self, recipe: Recipe) -> None:
        """Check that a recipe's model may be used here and that its files are there.

        Raises:
            ModelError: If this is a Space that lends itself to the starter model only.
            RecipeError: If files are missing, or it names no data.
        """
        self._models.check(recipe.model.source)
        refuse(file_problems(recipe))


def refuse(problems: Sequence[StudioError]) -> None:
    """Raise a RecipeError of these problems, if there are any."""
    if problems:
        raise RecipeError.of(problems)


def file_problems(recipe: Recipe) -> list[StudioError]:
    """Return what is wrong with the files a recipe names."""
    problems: list[StudioError] = [
        StudioError("run.file_missing", file=file)
        for file in recipe.data.files
        if not _exists(file)
    ]
    if not recipe.data.has_source:
        problems.append(StudioError("run.no_data"))
    return problems


def _exists(file: str) -> bool:
    try:
        return Path(file).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False
