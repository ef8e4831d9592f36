"""The Train tab: four cards, the sum of it all, and the run that is under way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.errors import RecipeError, StudioError
from lora_studio.models.accounting import count
from lora_studio.models.description import ModelInfo
from lora_studio.recipe import Recipe
from lora_studio.settings import STARTER
from lora_studio.studio import Studio
from lora_studio.training.plan import WORTH_TRAINING_STEPS, total_steps
from lora_studio.ui import adapter_card, model_card, render
from lora_studio.ui.data_panel import DataPanel
from lora_studio.ui.form import Form
from lora_studio.ui.language import Voice, text
from lora_studio.ui.outgoing import fresh_folder, lend
from lora_studio.ui.run_panel import RunPanel, run_choices, toast
from lora_studio.ui.shelf import Shelf
from lora_studio.ui.visitors import Door

DRAFT_KEY = "lora-studio-draft"


class TrainTab:
    """Builds the tab and answers its events.

    Args:
        door: Opens the studio of a request.
    """

    def __init__(self, door: Door) -> None:
        self.door = door
        self.form = Form()
        studio = door.main
        # The key is fixed: a fresh one at every start would forget what is in the browser.
        self.draft = gr.BrowserState(None, storage_key=DRAFT_KEY, secret="lora-studio")  # noqa: S106
        self.panel = RunPanel(door)
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=320):
                self.model = model_card.build(studio)
                self.text = DataPanel(door, self.form, self.model)
                info = studio.known_model(STARTER)
                self.why = adapter_card.build_adapter(
                    self.form, studio.hardware, info.target_names if info else ()
                )
                adapter_card.build_training(self.form)
            with gr.Column(scale=4, min_width=300):
                self._lay_out_sum()
        self._wire()

    def _lay_out_sum(self) -> None:
        with gr.Column(elem_classes="ls-card ls-sum", elem_id="sum"):
            gr.HTML(text("your_run"), elem_classes="ls-title")
            self.total = gr.HTML(elem_id="total")
            self.name = self.form.add(
                "name",
                gr.Textbox(
                    label=text("run_name"),
                    placeholder=text("run_name_hint"),
                    max_lines=1,
                    elem_id="run-name",
                ),
            )
            self.start = gr.Button(
                text("start"), variant="primary", size="lg", elem_id="start", interactive=False
            )
            self.said = gr.HTML(elem_id="said")
            with gr.Row():
                self.save_recipe = gr.Button(
                    text("recipe_save"), size="sm", elem_id="recipe-save", min_width=80
                )
                self.load_recipe = gr.UploadButton(
                    text("recipe_load"),
                    file_types=[".yaml", ".yml"],
                    size="sm",
                    elem_id="recipe-load",
                    min_width=80,
                )
            self.recipe_file = gr.DownloadButton("", visible="hidden", elem_id="recipe-file")

    def _wire(self) -> None:
        self._wire_model()
        self.text.wire()
        self._wire_sum()

    def _wire_model(self) -> None:
        card = self.model
        choice = [card.kind, card.repo, card.folder, card.token]
        modules = self.form.controls["adapter.target_modules"]
        gr.on(
            [card.kind.input, card.folder.input, card.look.click, card.repo.submit],
            self.choose_model,
            choice,
            [card.source, card.info, card.card, modules],
            show_progress="hidden",
            trigger_mode="always_last",
        ).then(self.refresh, self._sum_inputs(), self._sum_outputs(), show_progress="hidden")

    def _wire_sum(self) -> None:
        gr.on(
            [
                *(control.change for control in self.form.inputs),
                self.text.card.names.change,
                self.text.card.found.change,
            ],
            self.refresh,
            self._sum_inputs(),
            self._sum_outputs(),
            show_progress="hidden",
            trigger_mode="always_last",
            queue=False,
        )
        self.start.click(
            self.begin,
            [self.model.token, *self._sum_inputs()],
            [self.panel.bar, self.panel.run, self.said],
            js="(...values) => { window.scrollTo({top: 0, behavior: 'smooth'}); return values; }",
        )
        self.save_recipe.click(self.write_recipe, self._sum_inputs(), self.recipe_file).then(
            None, js="() => document.querySelector('#recipe-file').click()"
        )
        loaded = [
            *self.model.shown, self.text.card.files, self.text.card.asked, self.said,
            *self.form.inputs,
        ]  # fmt: skip
        self.load_recipe.upload(self.read_recipe, self.load_recipe, loaded)
        self.panel.reuse.click(self.reuse, self.panel.run, loaded, show_progress="hidden")

    # What the handlers need and change

    def _sum_inputs(self) -> list[Any]:
        return self.text.inputs

    def _sum_outputs(self) -> list[Any]:
        return [self.total, self.start, self.said, self.why, self.draft]

    # Handlers

    def choose_model(
        self, kind: Any, repo: Any, folder: Any, token: Any, request: gr.Request
    ) -> Iterator[Any]:
        """Look at the model that the card names; show what it is made of."""
        voice, studio = Voice(request), self.door.enter(request)
        waits = (kind == "hub" and not str(repo or "").strip()) or (kind == "folder" and not folder)
        if waits:
            yield "", render.busy(voice(f"model_{kind}_next")), gr.skip(), gr.skip()
            return
        try:
            source = model_card.source_of(kind, repo, folder, studio)
            for event in studio.inspect(source, token=token or None):
                if "result" not in event:
                    yield gr.skip(), render.stage(event, voice), gr.skip(), gr.skip()
                    continue
                info = event["result"]
                names = list(info.target_names)
                yield (
                    source,
                    render.model(info, voice),
                    gr.Accordion(label=model_card.title(info, voice)),
                    gr.CheckboxGroup(choices=names, value=names),
                )
        except StudioError as error:
            yield "", render.problem(error, voice), gr.skip(), gr.skip()

    def refresh(
        self, request: gr.Request, source: Any, names: Any, found: Any, *values: Any
    ) -> tuple[Any, ...]:
        """Show what the settings amount to, and whether a run can start."""
        voice, studio = Voice(request), self.door.enter(request)
        off = gr.Button(interactive=False)
        try:
            recipe = self.text.recipe(studio, source, names, values)
            self.text.want(request, recipe)
            info = studio.known_model(recipe.model.source)
            summed = self._total(studio, recipe, info, found, voice) if info else ""
        except RecipeError as error:
            return gr.skip(), off, render.problem(error, voice), gr.skip(), gr.skip()
        why = adapter_card.precision_why(recipe.precision, studio.hardware, voice)
        draft = {"names": list(names or []), "recipe": recipe.to_dict()}
        if not info or not found:
            missing = voice("start_needs_model" if not info else "start_needs_data")
            return summed, off, f'<p class="ls-quiet">{missing}</p>', why, draft
        steps = total_steps(recipe, found["trained_rows"])
        said = (
            render.note(voice("few_steps", steps=steps), "warn")
            if steps < WORTH_TRAINING_STEPS
            else ""
        )
        return summed, gr.Button(interactive=True), said, why, draft

    def begin(
        self, request: gr.Request, token: Any, source: Any, names: Any, _: Any, *values: Any
    ) -> tuple[Any, Any, Any]:
        """Start the run and show it."""
        voice, studio = Voice(request), self.door.enter(request)
        try:
            run = studio.start(self.text.recipe(studio, source, names, values), token=token or None)
        except StudioError as error:
            gr.Warning(escape(error.say(voice.language)))
            return gr.skip(), gr.skip(), render.problem(error, voice)
        return gr.Row(visible=True), run_choices(studio, run), gr.skip()

    def write_recipe(
        self, request: gr.Request, source: Any, names: Any, _: Any, *values: Any
    ) -> str:
        """Write the page's settings as a recipe file for download."""
        try:
            recipe = self.text.recipe(self.door.enter(request), source, names, values)
        except StudioError as error:
            raise toast(error, request) from error
        file = fresh_folder() / "recipe.yaml"
        file.write_text(recipe.to_yaml(), encoding="utf-8")
        return str(file)

    def read_recipe(self, path: str, request: gr.Request) -> list[Any]:
        """Show a recipe file's settings."""
        try:
            recipe = Recipe.from_yaml(Path(path).read_text(encoding="utf-8", errors="replace"))
        except StudioError as error:
            raise toast(error, request) from error
        return self._shown(recipe, request)

    def reuse(self, run: Any, request: gr.Request) -> list[Any]:
        """Show the settings of a run, to change one and train again."""
        try:
            recipe = self.door.enter(request).history(str(run)).folder.read_recipe()
        except StudioError as error:
            raise toast(error, request) from error
        return self._shown(recipe, request)

    def _shown(self, recipe: Recipe, request: gr.Request) -> list[Any]:
        """Return what the page shows for a recipe; files not on the shelf must be added."""
        voice, studio = Voice(request), self.door.enter(request)
        shelf = Shelf.of(studio.settings)
        names, absent = shelf.names(recipe.data.files)
        said = voice("recipe_add_files", files=", ".join(absent)) if absent else ""
        return [
            *model_card.show(recipe.model.source, studio, voice),
            lend(shelf.paths(names)) or None,
            time.time_ns(),
            render.note(said, "warn") if said else "",
            *self._values(studio, recipe),
        ]

    def restore(self, draft: Any, request: gr.Request) -> list[Any]:
        """Fill the page when it is opened: the draft in this browser, and the run to show."""
        voice, studio = Voice(request), self.door.enter(request)
        recipe, names = read_draft(draft)
        files = lend(Shelf.of(studio.settings).paths(names))
        active = studio.active()
        runs = studio.runs()
        latest = active or (runs[0] if runs else None)
        return [
            gr.Row(visible=latest is not None),
            run_choices(studio, latest.folder.id if latest else None),
            latest.folder.id if latest else "",
            *model_card.show(recipe.model.source, studio, voice),
            files or None,
            time.time_ns(),
            *self._values(studio, recipe),
        ]

    def restored(self) -> list[Any]:
        """The components that `restore` fills."""
        return [
            self.panel.bar, self.panel.run, self.panel.live, *self.model.shown,
            self.text.card.files, self.text.card.asked, *self.form.inputs,
        ]  # fmt: skip

    # Beneath

    def _values(self, studio: Studio, recipe: Recipe) -> list[Any]:
        info = studio.known_model(recipe.model.source) or studio.known_model(STARTER)
        return self.form.values(recipe, info.target_names if info else ())

    def _total(
        self, studio: Studio, recipe: Recipe, info: ModelInfo, found: Any, voice: Voice
    ) -> str:
        by_epochs = recipe.training.max_steps is None
        known = bool(found) or not by_epochs
        return render.total(
            count(info, recipe.adapter),
            steps=total_steps(recipe, found["trained_rows"] if found else 0) if known else None,
            epochs=recipe.training.num_train_epochs if by_epochs else None,
            trained_tokens=found["trained_tokens"] if found else None,
            precision=studio.precision(recipe),
            device=studio.hardware.device.upper(),
            voice=voice,
        )


def read_draft(draft: Any) -> tuple[Recipe, list[str]]:
    """Read what a browser kept; anything unusable is a fresh start."""
    try:
        tree = dict(draft["recipe"])
        names = [name for name in draft["names"] if isinstance(name, str)]
        return Recipe.from_dict(tree).with_files(()), names
    except (RecipeError, TypeError, KeyError, ValueError):
        return Recipe(), []
