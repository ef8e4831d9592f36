"""The Train tab: the cards, the sum of it all, and the run that is under way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.errors import RecipeError, StudioError
from lora_studio.models.description import ModelInfo
from lora_studio.recipe import Recipe
from lora_studio.recipes import upgrade
from lora_studio.recommendations.recommendation import Recommendation
from lora_studio.settings import STARTER
from lora_studio.studio import Studio
from lora_studio.ui import (
    adapter_card,
    goals,
    launch_choice,
    layer_choice,
    learn,
    model_card,
    render,
    sum_card,
    training_card,
)
from lora_studio.ui.data_panel import DataPanel
from lora_studio.ui.draft import Draft
from lora_studio.ui.form import Form
from lora_studio.ui.language import Voice
from lora_studio.ui.outgoing import fresh_folder, hand_out, lend
from lora_studio.ui.render import toast
from lora_studio.ui.run_panel import RunPanel, run_choices
from lora_studio.ui.shelf import Shelf
from lora_studio.ui.visitors import Door

DRAFT_KEY = "lora-studio-draft"
ELSEWHERE = ("data.max_length", "data.eval_fraction")
"""Settings with a recommended value whose controls are in sight in the simple mode too."""


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
        self.calibrated = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=320):
                self.model = model_card.build(studio)
                self.text = DataPanel(door, self.form, self.model)
                self.adapter = adapter_card.build(
                    self.form, studio.hardware, studio.models.known(STARTER)
                )
                self.training = training_card.build_training(self.form)
                with self.training.card:
                    self.launch = launch_choice.build(self.form, studio.hardware)
                training_card.build_prompts(self.form)
            with gr.Column(scale=4, min_width=300):
                self.sum = sum_card.build(door, self.form)
        self.goals = self.adapter.goals
        self._wire()

    @property
    def inputs(self) -> list[Any]:
        """What the settings are read from."""
        return [self.goals.mode, self.goals.goal, *self.text.inputs]

    # Wiring

    def _wire(self) -> None:
        self._wire_model()
        self.text.wire()
        layer_choice.wire(self.adapter.layers, self.model.source, self._model_of)
        launch_choice.wire(self.launch, self.form)
        self._wire_goals()
        self._wire_sum()
        self._wire_recipes()

    def _wire_model(self) -> None:
        card = self.model
        gr.on(
            [card.kind.input, card.folder.input, card.look.click, card.repo.submit],
            self.choose_model,
            [card.kind, card.repo, card.folder, card.token],
            [card.source, card.info, card.card, *self.adapter.layers.of_model],
            show_progress="hidden",
            trigger_mode="always_last",
        ).then(self.refresh, self.inputs, self._outputs(), show_progress="hidden")

    def _wire_goals(self) -> None:
        panel = self.goals
        panel.mode.change(
            lambda mode: [gr.update(visible=goals.mode_of(mode) == "all")] * 2,
            panel.mode,
            [self.adapter.details, self.training.card],
            show_progress="hidden",
            queue=False,
        )
        panel.goal.input(
            self.choose_goal, self.inputs, self.form.inputs,
            show_progress="hidden", trigger_mode="always_last",
        )  # fmt: skip
        format_ = self.form.controls[goals.FORMAT]
        format_.change(
            goals.follow_format, [format_, panel.goal], panel.goal,
            show_progress="hidden", queue=False,
        )  # fmt: skip
        gr.on(
            [panel.mode.input, self.text.card.found.change, self.model.source.change],
            self.follow_goal, self.inputs, self.form.inputs,
            show_progress="hidden", trigger_mode="always_last",
        )  # fmt: skip
        gr.on(
            [self.form.controls[path].input for path in ELSEWHERE],
            lambda: "all", None, panel.mode, show_progress="hidden", queue=False,
        )  # fmt: skip
        panel.differs.click(self.put_back, self.inputs, self.form.inputs, show_progress="hidden")

    def _wire_sum(self) -> None:
        gr.on(
            [
                *(control.change for control in self.form.inputs),
                self.goals.mode.change, self.goals.goal.change,
                self.text.card.names.change, self.text.card.found.change,
                self.calibrated.change,
            ],
            self.refresh, self.inputs, self._outputs(),
            show_progress="hidden", trigger_mode="always_last", queue=False,
        )  # fmt: skip
        self.sum.start.click(
            self.begin,
            [self.model.token, *self.inputs],
            [self.panel.bar, self.panel.run, self.sum.said],
            js="(...values) => { window.scrollTo({top: 0, behavior: 'smooth'}); return values; }",
        ).then(
            self.sum.recipes.refreshed, self.sum.recipes.lists, self.sum.recipes.lists,
            show_progress="hidden",
        )  # fmt: skip
        self.panel.queue.tick(
            self.name_start, None, self.sum.start,
            show_progress="hidden", trigger_mode="always_last", queue=False,
        )  # fmt: skip
        self.panel.queue.tick(
            self.panel.follow, self.panel.run, [self.panel.bar, self.panel.run],
            show_progress="hidden", trigger_mode="always_last", queue=False,
        )  # fmt: skip
        changed = [self.goals.mode, *self.form.inputs]
        self.sum.prediction.click(self.make_fit, self.inputs, changed, show_progress="hidden")
        self.text.card.found.change(
            self.calibrate, self.inputs, self.calibrated,
            show_progress="hidden", concurrency_limit=None,
        )  # fmt: skip

    def _wire_recipes(self) -> None:
        card = self.sum
        self.shown = shown = self._shown_components()
        hand_out(card.save.click(self.write_recipe, self.inputs, card.file), card.file)
        card.load.upload(self.read_recipe, card.load, shown)
        self.panel.reuse.click(self.reuse, self.panel.run, shown, show_progress="hidden")
        self.panel.resume.click(
            self.panel.go_on, [self.panel.run, self.model.token], None, show_progress="hidden"
        )
        card.recipes.wire(
            self.inputs, self._recipe, shown=shown, show=self._shown, token=self.model.token
        )

    def _outputs(self) -> list[Any]:
        """What follows from the settings, in the order of `refresh`."""
        panel = self.goals
        return [
            *self.sum.outputs, *self.adapter.outputs, self.training.said, panel.chosen,
            panel.differs, self.draft,
        ]  # fmt: skip

    def _shown_components(self) -> list[Any]:
        """What a recipe fills, in the order of `_shown`."""
        card = self.text.card
        return [
            *self.model.shown, card.files, card.asked, self.sum.said, self.goals.mode,
            *self.form.inputs,
        ]  # fmt: skip

    # Handlers

    def choose_model(
        self, kind: Any, repo: Any, folder: Any, token: Any, request: gr.Request
    ) -> Iterator[Any]:
        """Look at the model that the card names; show what it is made of."""
        voice, studio = Voice(request), self.door.enter(request)
        rest = [gr.skip() for _ in self.adapter.layers.of_model]
        waits = (kind == "hub" and not str(repo or "").strip()) or (kind == "folder" and not folder)
        if waits:
            yield ["", render.busy(voice(f"model_{kind}_next")), gr.skip(), *rest]
            return
        try:
            source = model_card.source_of(kind, repo, folder, studio)
            for event in studio.models.inspect(source, token=token or None):
                if "result" not in event:
                    yield [gr.skip(), render.stage(event, voice), gr.skip(), *rest]
                    continue
                info = event["result"]
                card = gr.Accordion(label=model_card.title(info, voice))
                layers = layer_choice.for_model(info, voice)
                yield [source, render.model(info, voice), card, *layers]
        except StudioError as error:
            yield ["", render.problem(error, voice), gr.skip(), *rest]

    def follow_goal(self, request: gr.Request, mode: Any, *values: Any) -> list[Any]:
        """Set everything as the goal wants it, unless a person sets it."""
        if goals.mode_of(mode) == "all":
            return [gr.skip() for _ in self.form.inputs]
        return self._recommended(request, mode, values)

    def choose_goal(self, request: gr.Request, mode: Any, *values: Any) -> list[Any]:
        """Read the rows as the goal wants it, and set all else unless a person sets it."""
        puts = self.follow_goal(request, mode, *values)
        goal, _source, _names, _found, *settings = values
        return goals.put_format(self.form, goal, settings, puts)

    def put_back(self, event: gr.EventData, request: gr.Request, *values: Any) -> list[Any]:
        """Put one setting, or all, back to what is recommended."""
        mode, *rest = values
        return self._recommended(request, mode, rest, event)

    def refresh(self, request: gr.Request, *values: Any) -> list[Any]:
        """Show what the settings amount to, and whether a run can start."""
        voice, studio = Voice(request), self.door.enter(request)
        mode, goal, _source, names, found, *_ = values
        try:
            recipe = self._recipe(request, *values)
        except RecipeError as error:
            return self._refused(error, voice)
        self.text.want(request, recipe)
        draft = Draft(
            recipe=recipe, names=names or (), goal=goals.goal_of(goal), mode=goals.mode_of(mode)
        )
        outlook = studio.planning.outlook(recipe, found)
        if found:
            studio.training.make_ready(recipe)
        recommended = goals.recommendation(goal, found, outlook.info, studio.hardware)
        return [
            *sum_card.shown(outlook, recipe, found, studio.hardware.device, voice),
            *adapter_card.shown(outlook, recipe, studio.hardware, voice),
            training_card.said_of(outlook, voice),
            *goals.show(recipe, recommended, voice),
            draft.to_dict(),
        ]

    def _refused(self, error: RecipeError, voice: Voice) -> list[Any]:
        """Return what is shown of settings that make no recipe: why, and all else as it was."""
        said = {
            id(self.sum.start): gr.Button(interactive=False),
            id(self.sum.said): render.problem(error, voice),
            id(self.adapter.layers.said): layer_choice.said_of_error(error, voice),
            id(self.training.said): training_card.said_of_error(error, voice),
        }
        return [said.get(id(component), gr.skip()) for component in self._outputs()]

    def make_fit(self, event: gr.EventData, request: gr.Request, *values: Any) -> list[Any]:
        """Change the settings as the clicked button says; they are a person's own then."""
        try:
            recipe = sum_card.fixed(self._recipe(request, *values), event)
        except RecipeError as error:
            raise toast(error, request) from error
        return ["all", *self._values(self.door.enter(request), recipe)]

    def calibrate(self, request: gr.Request, *values: Any) -> Any:
        """See how fast this device is, once, so that times can be told."""
        rate: Any = gr.skip()
        try:
            for event in self.door.enter(request).planning.calibrate(
                self._recipe(request, *values)
            ):
                rate = event.get("result", rate)
        except StudioError:
            pass  # times stay unknown until a run has measured them
        return rate

    def begin(self, request: gr.Request, token: Any, *values: Any) -> tuple[Any, Any, Any]:
        """Start the run and show it; where the device is busy, line it up and say so."""
        voice, studio = Voice(request), self.door.enter(request)
        try:
            run = studio.training.submit(self._recipe(request, *values), token=token or None)
        except StudioError as error:
            gr.Warning(escape(error.say(voice.language)))
            return gr.skip(), gr.skip(), render.problem(error, voice)
        order, active = studio.line.waiting(), studio.runs.active()
        if run not in order:
            return gr.Row(visible=True), run_choices(studio, run), gr.skip()
        said = voice("queue_joined", run=run, place=order.index(run) + 1)
        shown = active.folder.id if active else run  # what trains stays in view
        return gr.Row(visible=True), run_choices(studio, shown), render.note(said, "good")

    def name_start(self, request: gr.Request) -> Any:
        """Say on the start button what a click does now: start, or line up."""
        waits = self.door.enter(request).line.would_wait()
        return gr.Button(Voice(request)("start_queue" if waits else "start"))

    def picture(self, request: gr.Request, *values: Any) -> Any:
        """Return what the LoRA picture shows of the settings."""
        try:
            recipe = self._recipe(request, *values)
        except RecipeError:
            return gr.skip()
        info = self._model_of(request, recipe.model.source)
        return learn.picture_value(info, recipe.adapter, Voice(request))

    def write_recipe(self, request: gr.Request, *values: Any) -> str:
        """Write the page's settings as a recipe file for download."""
        try:
            recipe = self._recipe(request, *values)
        except StudioError as error:
            raise toast(error, request) from error
        file = fresh_folder() / "recipe.yaml"
        file.write_text(recipe.to_yaml(), encoding="utf-8")
        return str(file)

    def read_recipe(self, path: str, request: gr.Request) -> list[Any]:
        """Show a recipe file's settings."""
        try:
            recipe = upgrade.read_recipe(Path(path).read_text(encoding="utf-8", errors="replace"))
        except StudioError as error:
            raise toast(error, request) from error
        return self._shown(recipe, request)

    def reuse(self, run: Any, request: gr.Request) -> list[Any]:
        """Show the settings of a run, to change one and train again."""
        try:
            recipe = self.door.enter(request).runs.history(str(run)).folder.read_recipe()
        except StudioError as error:
            raise toast(error, request) from error
        return self._shown(recipe, request)

    def restore(self, kept: Any, request: gr.Request) -> list[Any]:
        """Fill the page when it is opened: the draft in this browser, and the run to show."""
        voice, studio = Voice(request), self.door.enter(request)
        draft = Draft.read(kept)
        files = lend(Shelf.of(studio.settings).paths(draft.names))
        active = studio.runs.active()
        folders = studio.runs.folders()
        latest = active.folder if active else folders[0] if folders else None
        return [
            gr.Row(visible=latest is not None),
            run_choices(studio, latest.id if latest else None),
            latest.id if latest else "",
            draft.goal,
            *model_card.show(draft.recipe.model.source, studio, voice),
            files or None,
            time.time_ns(),
            "",
            draft.mode,
            *self._values(studio, draft.recipe),
        ]

    def restored(self) -> list[Any]:
        """The components that `restore` fills."""
        return [
            self.panel.bar, self.panel.run, self.panel.live, self.goals.goal,
            *self._shown_components(),
        ]  # fmt: skip

    # Beneath

    def _recipe(self, request: gr.Request, *values: Any) -> Recipe:
        """Return the recipe that `inputs` show."""
        _mode, _goal, source, names, _found, *settings = values
        return self.text.recipe(self.door.enter(request), source, names, settings)

    def _model_of(self, request: gr.Request, source: Any) -> ModelInfo | None:
        return self.door.enter(request).models.known(str(source or ""))

    def _recommended(
        self, request: gr.Request, mode: Any, values: Any, event: gr.EventData | None = None
    ) -> list[Any]:
        """Return the form with recommended values: of all settings, or of the one clicked."""
        studio = self.door.enter(request)
        goal, source, _, found, *_ = values
        recommended = goals.recommendation(
            goal, found, self._model_of(request, source), studio.hardware
        )
        paths = _asked(event, recommended) if recommended else None
        if recommended is None or paths is None:
            return [gr.skip() for _ in self.form.inputs]
        try:
            recipe = self._recipe(request, mode, *values)
        except RecipeError:
            # What was typed makes no recipe: it gives way with all the rest.
            return self.form.values(recommended.applied(Recipe()), recommended.module_names)
        return goals.put(self.form, recipe, recommended, *paths)

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
            "all",  # a recipe's settings are a person's own
            *self._values(studio, recipe),
        ]

    def _values(self, studio: Studio, recipe: Recipe) -> list[Any]:
        info = studio.models.known(recipe.model.source) or studio.models.known(STARTER)
        if info is None:
            return self.form.values(recipe, ())
        return self.form.values(recipe, info.target_names, layer_choice.whole_choices(info))


def _asked(event: gr.EventData | None, recommended: Recommendation) -> list[str] | None:
    """Return the settings to put back: none named means all, None that nothing was asked."""
    if event is None:
        return []
    path = goals.asked_path(event, recommended)
    return None if path is None else [] if path == "all" else [path]
