"""What the page needs to know while settings are made: the model's layers, the tokens of the data.

Both take the heavy libraries, so a workbench runs in a child process of the page, or in the
command line's own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from lora_studio.data.preparation import prepare
from lora_studio.data.prepared import Prepared
from lora_studio.exports.rows import write_rows
from lora_studio.models.description import ModelInfo
from lora_studio.models.inspection import inspect_model
from lora_studio.models.loading import load_tokenizer
from lora_studio.models.sources import resolve
from lora_studio.prediction.calibration import measure
from lora_studio.recipe import Recipe
from lora_studio.settings import Settings
from lora_studio.training.plan import measured_rows

Progress = Callable[[str, int, int], None]


class Workbench:
    """Answers questions about models and data.

    Every method yields `{"stage", "done", "total"}` while it works and at last
    `{"result": …}`, so that a page can show progress from another process.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tokenizers: dict[Path, Any] = {}
        self._histograms: dict[Path, dict[str, Any]] = {}
        self._last: tuple[Any, Prepared | None] = (None, None)

    def fetch(self, source: str, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Bring a model with its weights to this machine; the result is its folder."""
        return _with_progress(
            lambda progress: str(resolve(source, self._settings, token=token, on_progress=progress))
        )

    def inspect(self, source: str, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Describe a model; the result is `ModelInfo.to_dict()`."""
        return _with_progress(lambda progress: self._inspect(source, token, progress).to_dict())

    def preview(self, recipe: Recipe, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Encode a recipe's data; the result is the report's `to_dict()`."""
        return _with_progress(
            lambda progress: self._prepared(recipe, token, progress).report.to_dict()
        )

    def rows(
        self,
        recipe: Recipe,
        part: Literal["train", "evaluation", "skipped"],
        page: int,
        search: str = "",
        token: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Show a page of a recipe's rows; the result is that of `Prepared.page`."""
        return _with_progress(
            lambda progress: self._last_prepared(recipe, token, progress).page(part, page, search)
        )

    def write_rows(
        self, recipe: Recipe, folder: Path, device: str, token: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Write a recipe's rows as text; the result is that of `exports.rows.write_rows`."""

        def write(progress: Progress) -> dict[str, int]:
            prepared = self._last_prepared(recipe, token, progress)
            held_out = measured_rows(recipe, device, len(prepared.evaluation))
            return write_rows(prepared, folder, held_out=held_out)

        return _with_progress(write)

    def nf4(self, source: str, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Round one weight of a model to NF4; the result is `WeightsHistogram.to_dict()`."""
        return _with_progress(lambda progress: self._nf4(source, token, progress))

    def _nf4(self, source: str, token: str | None, progress: Progress) -> dict[str, Any]:
        folder = resolve(source, self._settings, token=token, on_progress=progress)
        if folder not in self._histograms:
            from lora_studio.models.weights_histogram import nf4_histogram

            progress("weights", 0, 0)
            self._histograms = {folder: nf4_histogram(folder).to_dict()}
        return self._histograms[folder]

    def xray(
        self, adapter: Path, source: str, token: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Look into an adapter folder of a base model; the result is `Xray.to_dict()`."""

        def look(progress: Progress) -> dict[str, Any]:
            from lora_studio.adapters.xray import xray

            folder = resolve(source, self._settings, token=token, on_progress=progress)
            progress("weights", 0, 0)
            return xray(adapter, folder).to_dict()

        return _with_progress(look)

    def calibrate(self, device: str, width: int) -> Iterator[dict[str, Any]]:
        """Measure this device for a second; the result is FLOP a second of a matrix product."""

        def work(progress: Progress) -> float:
            progress("calibrate", 0, 0)
            return measure(device, width)

        return _with_progress(work)

    def _inspect(self, source: str, token: str | None, progress: Progress) -> ModelInfo:
        folder = resolve(source, self._settings, token=token, on_progress=progress, weights=False)
        progress("inspect", 0, 0)
        return inspect_model(folder, source)

    def _last_prepared(self, recipe: Recipe, token: str | None, progress: Progress) -> Prepared:
        """Return what the last preview of this recipe made, without reading the files again."""
        known, prepared = self._last
        if prepared is not None and known == _asked(recipe):
            return prepared
        return self._prepared(recipe, token, progress)

    def _prepared(self, recipe: Recipe, token: str | None, progress: Progress) -> Prepared:
        folder = resolve(
            recipe.model.source, self._settings, token=token, on_progress=progress, weights=False
        )
        if folder not in self._tokenizers:
            progress("start", 0, 0)
            tokenizer = load_tokenizer(folder)
            self._tokenizers = {folder: (tokenizer, tokenizer.chat_template)}
        # One without a template is given that of the recipe, each time anew.
        tokenizer, tokenizer.chat_template = self._tokenizers[folder]
        prepared = prepare(
            recipe.data,
            tokenizer,
            recipe.seed,
            on_progress=lambda done, total: progress("tokenize", done, total),
            cache=self._settings.prepared,
            token=token,
        )
        self._last = _asked(recipe), prepared
        return prepared


class _Cancelled(BaseException):
    """Nobody waits for the result any more."""


def _asked(recipe: Recipe) -> Any:
    """Return what a preview follows from."""
    return recipe.model, recipe.data, recipe.seed


def _with_progress(work: Callable[[Progress], Any]) -> Iterator[dict[str, Any]]:
    """Run `work` in a thread and yield the progress it reports, then its result.

    Closing the iterator ends the work at its next report.
    """
    news: queue.SimpleQueue[dict[str, Any] | BaseException] = queue.SimpleQueue()
    is_closed = threading.Event()

    def report(stage: str, done: int, total: int) -> None:
        if is_closed.is_set():
            raise _Cancelled
        news.put({"stage": stage, "done": done, "total": total})

    def run() -> None:
        try:
            news.put({"result": work(report)})
        except BaseException as error:  # noqa: BLE001 - handed to the reader, who raises it
            news.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            item = news.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if "result" in item:
                return
    finally:
        is_closed.set()
