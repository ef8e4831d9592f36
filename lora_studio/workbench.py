"""What the page needs to know while settings are made: the model's layers, the tokens of the data.

Both take the heavy libraries, so a workbench runs in a child process of the page, or in the
command line's own.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lora_studio.data.preparation import prepare
from lora_studio.data.prepared import Prepared
from lora_studio.data.templates import ensure_chat_template
from lora_studio.errors import ModelError, StudioError
from lora_studio.exports.orders import Order, Publication
from lora_studio.exports.rows import write_rows
from lora_studio.library.names import Named
from lora_studio.measuring.forgetting import probe_rows
from lora_studio.measuring.rows import HeldOut, held_out, seen
from lora_studio.measuring.wanted import Material
from lora_studio.models.description import ModelInfo
from lora_studio.models.inspection import inspect_model, licence
from lora_studio.models.loading import load_tokenizer
from lora_studio.models.sources import resolve
from lora_studio.prediction.calibration import measure
from lora_studio.recipe import Recipe
from lora_studio.settings import Settings
from lora_studio.training.plan import measured_rows

Progress = Callable[[str, int, int], None]
REFUSALS = {"model.gated", "model.not_found", "model.token_refused"}
"""What the Hub says of a model to those who may not read it."""


class Workbench:
    """Answers questions about models and data.

    Every method yields `{"stage", "done", "total"}` while it works and at last
    `{"result": …}`, so that a page can show progress from another process.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tokenizer_of: tuple[Path | None, Any] = (None, None)
        self._histograms: dict[Path, dict[str, Any]] = {}
        self._last: tuple[Any, Prepared | None] = (None, None)
        self._is_stopped = threading.Event()

    def stop(self) -> None:
        """Have an export or upload end at its next report; it raises when what it made is gone."""
        self._is_stopped.set()

    def fetch(self, source: str, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Bring a model with its weights to this machine; the result is its folder."""
        return _with_progress(lambda progress: str(self._folder(source, token, progress)))

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
            progress("xray", 0, 0)
            return xray(adapter, folder).to_dict()

        return _with_progress(look)

    def take_in(
        self, what: str, place: Path, base: str = "", token: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Add an adapter from elsewhere; the result is that of `library.arrivals.take_in`."""

        def take(progress: Progress) -> dict[str, Any]:
            from lora_studio.library.arrivals import take_in

            progress("start", 0, 0)
            return take_in(
                what, place, self._settings, base=base, token=token, on_progress=progress
            )

        return _with_progress(take)

    def make_smaller(self, named: Named, rank: int, place: Path) -> Iterator[dict[str, Any]]:
        """Shrink an adapter; the result is that of `library.arrivals.make_smaller`."""

        def make(progress: Progress) -> dict[str, Any]:
            from lora_studio.library.arrivals import make_smaller

            progress("start", 0, 0)
            return make_smaller(named, rank, place, on_progress=progress)

        return _with_progress(make)

    def measured_on(
        self,
        recipe: Recipe,
        data: Path | None,
        rows: int,
        *,
        is_text: bool = False,
        learned: Path | None = None,
        probe: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Read what an adapter is measured on; the result is a `measuring.wanted.Material`.

        Args:
            recipe: Names the base, and the chat template of one that has none.
            data: The data folder of the run whose held-out rows are taken; None takes none.
            rows: How many of them.
            is_text: Whether that run learned plain text.
            learned: The data folder of the run that made the adapter, if that is another.
            probe: Whether the general texts are wanted too.
        """

        def read(progress: Progress) -> Material:
            tokenizer = self._tokenizer(recipe, None, progress)
            ensure_chat_template(tokenizer, recipe.data.chat_template)
            found = held_out(data, tokenizer, rows, is_text=is_text) if data else HeldOut()
            return Material(
                held_out=found,
                seen=seen(found.rows, learned) if learned else 0,
                probe=probe_rows(tokenizer) if probe else {},
            )

        return _with_progress(read)

    def export(self, order: Order, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Export an adapter; the result is `exports.orders.Shipped.to_dict()`.

        Closed early, it returns when what was half made is removed.
        """

        def work(progress: Progress) -> dict[str, Any]:
            from lora_studio.exports.shipping import ship

            source, base = order.adapter.source, None
            if order.form != "zip":
                base = resolve(source, self._settings, token=token, on_progress=progress)
            return ship(order, base, self._settings, progress).to_dict()

        return self._stoppable(work)

    def push(self, asked: Publication, token: str | None = None) -> Iterator[dict[str, Any]]:
        """Bring an adapter to the Hub; the result is `exports.orders.Published.to_dict()`.

        Closed early, it returns when what was half made is removed.
        """

        def work(progress: Progress) -> dict[str, Any]:
            from lora_studio.exports.facts import facts_of
            from lora_studio.exports.publishing import bring

            progress("start", 0, 0)
            settings = self._settings
            if asked.visitor:
                settings = settings.for_visitor(asked.visitor)
            known = self._licence(asked.adapter.source, token)
            facts = facts_of(asked.adapter, known, settings)
            return bring(asked, facts, settings, token=token, progress=progress).to_dict()

        return self._stoppable(work)

    def _stoppable(self, work: Callable[[Progress], Any]) -> Iterator[dict[str, Any]]:
        """As `_with_progress`; `stop` ends it, and so does closing, which returns when it has.

        Raises:
            StudioError: If it was stopped.
        """
        self._is_stopped.clear()

        def until_stopped(progress: Progress) -> Any:
            def report(stage: str, done: int, total: int) -> None:
                if self._is_stopped.is_set():
                    raise _Cancelled
                progress(stage, done, total)

            return work(report)

        try:
            yield from _with_progress(until_stopped, is_awaited=True)
        except _Cancelled as cancelled:
            raise StudioError("shipping.stopped") from cancelled

    def _licence(self, source: str, token: str | None) -> str | None:
        """Return the licence of a base as its card states it, None where it is not here."""
        try:
            return licence(resolve(source, self._settings, token=token, weights=False))
        except ModelError:
            return None

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

    def _folder(
        self, source: str, token: str | None, progress: Progress, *, weights: bool = True
    ) -> Path:
        """Return a model's folder; one that the Hub now refuses may have come with a token before.

        On a Space that was perhaps another's token.
        """
        settings = self._settings
        try:
            return resolve(source, settings, token=token, on_progress=progress, weights=weights)
        except ModelError as refusal:
            if refusal.key not in REFUSALS or token is not None or settings.space_id:
                raise
            with suppress(ModelError):
                return resolve(source, replace(settings, offline=True), weights=weights)
            raise

    def _last_prepared(self, recipe: Recipe, token: str | None, progress: Progress) -> Prepared:
        """Return what the last preview of this recipe made, without reading the files again."""
        known, prepared = self._last
        if prepared is not None and known == _asked(recipe):
            return prepared
        return self._prepared(recipe, token, progress)

    def _tokenizer(self, recipe: Recipe, token: str | None, progress: Progress) -> Any:
        """Return a tokenizer of a recipe's base, with the chat template it came with or none."""
        folder = self._folder(recipe.model.source, token, progress, weights=False)
        known, tokenizer = self._tokenizer_of
        if known != folder:
            progress("start", 0, 0)
            tokenizer = load_tokenizer(folder)
            self._tokenizer_of = folder, tokenizer
        # One without a template is given that of a recipe, while the work before may go on.
        return copy.copy(tokenizer)

    def _prepared(self, recipe: Recipe, token: str | None, progress: Progress) -> Prepared:
        prepared = prepare(
            recipe.data,
            self._tokenizer(recipe, token, progress),
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


def _with_progress(
    work: Callable[[Progress], Any], *, is_awaited: bool = False
) -> Iterator[dict[str, Any]]:
    """Run `work` in a thread and yield the progress it reports, then its result.

    Closing the iterator ends the work at its next report; who awaits that returns only then.
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

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
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
        if is_awaited:
            thread.join()
