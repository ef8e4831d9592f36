"""The data card at work: files come in, a preview is made, its rows are looked through."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.recipe import DataSpec, Recipe
from lora_studio.studio import Studio
from lora_studio.ui import data_card, data_columns, data_rows, data_view, length_chart, render
from lora_studio.ui.form import Form
from lora_studio.ui.language import Voice, text
from lora_studio.ui.model_card import ModelCard
from lora_studio.ui.numbers import count
from lora_studio.ui.outgoing import lend
from lora_studio.ui.shelf import Shelf
from lora_studio.ui.visitors import Door

MOST_SESSIONS = 1000
NOTHING = ""


class DataPanel:
    """Lays out the data card and answers its events.

    A preview ends as soon as its tab wants another one: each is known by a key made of all that
    it depends on, and `want` says which one a tab wants.

    Args:
        door: Opens the studio of a request.
        form: The page's settings; the card's controls are entered into it.
        model: The card before this one.
    """

    def __init__(self, door: Door, form: Form, model: ModelCard) -> None:
        self.door = door
        self.form = form
        self.model = model
        self.card = data_card.build(form)
        self._wanted: OrderedDict[str, str] = OrderedDict()

    @property
    def inputs(self) -> list[Any]:
        """What a recipe is made of, and the report on it."""
        return [self.model.source, self.card.names, self.card.found, *self.form.inputs]

    def wire(self) -> None:
        """Tie controls to handlers, once every control of the form is there."""
        self._wire_sources()
        self._wire_preview()
        self._wire_rows()

    def _wire_sources(self) -> None:
        card = self.card
        own = [card.columns.chosen, card.columns.template, card.offer.text_as, card.rows.search]
        card.files.clear(forgotten, None, own, show_progress="hidden")
        card.files.change(self.take_files, card.files, card.names, show_progress="hidden")
        card.add.click(
            self.add_text,
            [card.pasted, card.files],
            [card.files, card.pasted],
            show_progress="hidden",
        )
        for name, button in card.examples.items():
            settings = [self.form.controls[path] for path in data_card.EXAMPLE_SETTINGS[name]]
            button.click(
                lambda name=name: self.take_example(name),
                None,
                [*own, card.files, *settings],
                show_progress="hidden",
            )
        card.offer.switch.click(
            lambda now: "text" if now == "pairs" else "pairs",
            card.offer.text_as,
            card.offer.text_as,
            show_progress="hidden",
        )
        pickers = list(card.columns.pickers.values())
        gr.on(
            [picker.input for picker in pickers],
            lambda *values: data_columns.chosen(values),
            pickers,
            card.columns.chosen,
            show_progress="hidden",
            trigger_mode="always_last",  # a second choice before the first has arrived counts too
        )
        card.columns.guess.click(dict, None, card.columns.chosen, show_progress="hidden")

    def _wire_preview(self) -> None:
        card = self.card
        typed = [event for box in card.typed for event in (box.submit, box.blur)]
        preview = gr.on(
            [
                card.names.change, card.asked.change, card.fetch.click, card.hub.submit,
                self.model.source.change, *typed,
                *(control.change for control in card.changing),
            ],
            self.preview,
            [self.model.token, *self.inputs, card.columns.known],
            self._preview_outputs(),
            show_progress="hidden",
            trigger_mode="always_last",
            concurrency_limit=None,  # who waits for another's turn sees that it has begun
        )  # fmt: skip
        card.cancel.click(
            self.cancel,
            None,
            [card.status, card.cancel],
            cancels=[preview],
            show_progress="hidden",
            queue=False,
        )

    def _wire_rows(self) -> None:
        rows = self.card.rows
        asks = [rows.part, rows.page, rows.search, self.model.token, *self.inputs]
        fresh = [self.card.found.change, rows.part.change, rows.find.click, rows.search.submit]
        for triggers, step in ((fresh, 0), ([rows.back.click], -1), ([rows.on.click], 1)):
            gr.on(
                triggers,
                self._turn(step),
                asks,
                rows.shown,
                show_progress="hidden",
                trigger_mode="always_last",
                concurrency_limit=None,
            )

    def _preview_outputs(self) -> list[Any]:
        card = self.card
        return [
            card.status, card.cancel, card.found, card.asked, card.card, card.summary,
            card.offer.part, card.offer.sentence, card.offer.switch, card.lengths, card.truncation,
            card.pieces, card.rows.whole,
            *card.columns.shown, *card.checks.shown,
        ]  # fmt: skip

    def recipe(self, studio: Studio, source: Any, names: Any, values: Sequence[Any]) -> Recipe:
        """Build the recipe on the page.

        Raises:
            RecipeError: Naming everything that does not fit.
        """
        files = Shelf.of(studio.settings).paths(names or [])
        return self.form.recipe(values, source=str(source or ""), files=files)

    def want(self, request: gr.Request, recipe: Recipe) -> None:
        """End a preview that this tab makes of anything else than the recipe's data."""
        self._want(request, key_of(recipe))

    # Handlers

    def take_files(self, paths: list[str] | None, request: gr.Request) -> list[str]:
        """Keep uploaded files on the shelf; return their names there."""
        shelf = Shelf.of(self.door.enter(request).settings)
        return [shelf.keep(Path(path)) for path in paths or []]

    def take_example(self, name: str) -> list[Any]:
        """Choose a shipped example, with settings that show an effect on so few rows."""
        files = lend([str(data_card.example(name))])
        return [*forgotten(), files, *data_card.EXAMPLE_SETTINGS[name].values()]

    def add_text(
        self, pasted: str, paths: list[str] | None, request: gr.Request
    ) -> tuple[Any, Any]:
        """Put pasted text on the shelf as a file beside the uploaded ones."""
        voice, studio = Voice(request), self.door.enter(request)
        if not (pasted or "").strip():
            gr.Info(voice("paste_first"))
            return gr.skip(), gr.skip()
        shelf = Shelf.of(studio.settings)
        name = shelf.keep_text(pasted, pasted_name(pasted))
        return [*(paths or []), *lend(shelf.paths([name]))], ""

    def preview(
        self,
        request: gr.Request,
        token: Any,
        source: Any,
        names: Any,
        found: Any,
        *values_and_columns: Any,
    ) -> Iterator[dict[Any, Any]]:
        """Encode the data and show the tokens that will be trained on."""
        *values, columns = values_and_columns
        voice, studio = Voice(request), self.door.enter(request)
        try:
            recipe = self.recipe(studio, source, names, tuple(values))
        except StudioError as error:
            yield self._nothing(voice) | self._says(render.problem(error, voice))
            return
        key = key_of(recipe)
        self._want(request, key)
        if not recipe.data.has_source:
            yield self._nothing(voice) | self._says(render.busy(voice("data_empty")))
        elif found and found.get("key") == key:
            yield self._says("")
        else:
            yield from self._prepare(request, studio, recipe, token, list(columns or []))

    def _prepare(
        self, request: gr.Request, studio: Studio, recipe: Recipe, token: Any, columns: list[str]
    ) -> Iterator[dict[Any, Any]]:
        voice, key = Voice(request), key_of(recipe)
        yield self._says(preparing({"stage": "start"}, voice), is_busy=True)
        try:
            for event in studio.data.preview(recipe, token=token or None):
                if self._is_overtaken(request, key):
                    yield from self._once_more(request)
                    return
                if "result" in event:
                    yield self._shown({**event["result"], "key": key}, recipe, voice)
                else:
                    yield self._says(preparing(event, voice), is_busy=True)
        except StudioError as error:
            if self._is_overtaken(request, key):
                yield from self._once_more(request)
                return
            data = recipe.data
            yield (
                self._nothing(voice)
                | self._says(render.problem(error, voice))
                | self.card.columns.show_problem(error, columns, data, voice)
                | self.card.checks.show_problem(error, data.checks, voice)
            )

    def _is_overtaken(self, request: gr.Request, key: str) -> bool:
        """Say whether this tab wants something else by now than the preview of this key.

        To show that preview, or what is wrong with it, would undo the newer choices.
        """
        return self._wanted.get(str(request.session_hash), key) != key

    def _once_more(self, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Ask for a preview again, with the settings of then, unless it was ended for good."""
        if self._wanted.get(str(request.session_hash)) != NOTHING:
            yield {self.card.asked: time.time_ns()}

    def cancel(self, request: gr.Request) -> tuple[str, gr.Button]:
        """End this tab's preview; the last report stays."""
        self._want(request, NOTHING)
        return render.busy(Voice(request)("data_cancelled")), gr.Button(visible=False)

    def _turn(self, step: int) -> Any:
        """Return a handler that shows the page `step` further, or the first one."""

        def turn(
            request: gr.Request,
            part: Any,
            page: Any,
            search: Any,
            token: Any,
            source: Any,
            names: Any,
            found: Any,
            *values: Any,
        ) -> Iterator[list[Any]]:
            voice, studio = Voice(request), self.door.enter(request)
            nothing = [gr.skip() for _ in self.card.rows.shown]
            if not found:
                yield nothing
                return
            part, page, search = data_rows.asked(part, page, search)
            wanted = max(page + step, 1) if step else 1
            try:
                recipe = self.recipe(studio, source, names, values)
                for event in studio.data.rows(
                    recipe, part=part, page=wanted, search=search, token=token or None
                ):
                    if "result" in event:
                        yield data_rows.show(part, event["result"], voice)
            except StudioError as error:
                yield [render.problem(error, voice), *nothing[1:]]

        return turn

    # Beneath

    def _want(self, request: gr.Request, key: str) -> None:
        self._wanted[str(request.session_hash)] = key
        self._wanted.move_to_end(str(request.session_hash))
        while len(self._wanted) > MOST_SESSIONS:
            self._wanted.popitem(last=False)

    def _says(self, sentence: str, *, is_busy: bool = False) -> dict[Any, Any]:
        """Return the card's state, with the button that ends what is being done."""
        return {self.card.status: sentence, self.card.cancel: gr.Button(visible=is_busy)}

    def _nothing(self, voice: Voice) -> dict[Any, Any]:
        """Return the card without a report."""
        card = self.card
        return {
            card.found: None,
            card.card: gr.Accordion(label=voice("card_data")),
            card.summary: gr.HTML(visible=False),
            card.offer.part: gr.Column(visible=False),
            card.lengths: "",
            card.pieces: gr.Accordion(visible=False),
            card.rows.whole: gr.Column(visible=False),
            card.checks.part: gr.Column(visible=False),
        }

    def _shown(self, found: dict[str, Any], recipe: Recipe, voice: Voice) -> dict[Any, Any]:
        """Return the card with a report."""
        card, data = self.card, recipe.data
        sources = [Path(file).name for file in data.files]
        sources += [data.hub.repo_id] if data.hub.repo_id else []
        label = voice(
            "card_data_done",
            files=", ".join(sources),
            rows=f"{found['rows']:,}",
            tokens=count(found["tokens"]),
        )
        in_pairs = data.text_as == "pairs"
        has_documents = bool(found["formats"].keys() - found["columns"].keys())
        switch = text("pairs_back") if in_pairs else text("pairs_take")
        return {
            **self._says(""),
            card.found: found,
            card.card: gr.Accordion(label=label),
            card.summary: gr.HTML(data_view.summary(found, voice), visible=True),
            card.offer.part: gr.Column(
                visible=bool(found["pairs"]) or (in_pairs and has_documents)
            ),
            card.offer.sentence: data_view.pairs(found, voice),
            card.offer.switch: gr.Button(switch),
            card.lengths: length_chart.value(found, voice),
            card.truncation: gr.Radio(visible=found["format"] != data_view.TEXT),
            card.pieces: gr.Accordion(visible=found["format"] in data_view.WITH_TEXT),
            card.rows.whole: gr.Column(visible=True),
            **card.columns.show(found, data, voice),
            **card.checks.show(found, data.checks, voice),
        }


def forgotten() -> list[Any]:
    """Return what was chosen for one file and is wrong for the next: columns, template, search."""
    return [{}, "", DataSpec().text_as, ""]


def key_of(recipe: Recipe) -> str:
    """Return the key of all that a preview depends on."""
    tree = recipe.to_dict()
    parts = json.dumps([tree["model"], tree["data"], tree["seed"]], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()


def preparing(event: dict[str, Any], voice: Voice) -> str:
    """Return what is being done; the page dims what is of before."""
    if "done" not in event:
        return f'<div class="ls-preparing">{render.busy(render.stage_sentence(event, voice))}</div>'
    return f'<div class="ls-preparing">{render.stage(event, voice)}</div>'


def pasted_name(pasted: str) -> str:
    """Name pasted text after its first words; JSON lines keep their meaning by the extension."""
    start = pasted.lstrip()
    kind = "jsonl" if start.startswith("{") else "json" if start.startswith("[") else "txt"
    words = "-".join("".join(c if c.isalnum() else " " for c in start[:60]).split()[:4])
    return f"{words or 'pasted'}.{kind}"
