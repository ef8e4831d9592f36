"""The card on the right: what the settings amount to, and the button that starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.outlook import Outlook
from lora_studio.recipe import Recipe
from lora_studio.training.plan import WORTH_TRAINING_STEPS
from lora_studio.ui import prediction_bar, render
from lora_studio.ui.form import Form
from lora_studio.ui.language import Voice, text
from lora_studio.ui.outgoing import handed
from lora_studio.ui.recipes import RecipePanel
from lora_studio.ui.visitors import Door

# A click on a change that makes the run fit is an event of the component, with its settings.
ON_FIX = """\
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-changes]');
  if (button) trigger('click', { changes: JSON.parse(button.dataset.changes) });
});"""

# On a phone the card is a bar that shows the least until it is opened.
UNFOLD = """\
() => {
  const isOpen = document.querySelector('#sum').classList.toggle('open');
  document.querySelector('#sum-more').setAttribute('aria-expanded', isOpen);
}"""


@dataclass(frozen=True, slots=True)
class SumCard:
    """The components the page's handlers need."""

    total: gr.HTML
    """Parameters, size, steps."""
    prediction: gr.HTML
    """Memory and time; a click on a button in it names a change that makes the run fit."""
    start: gr.Button
    said: gr.HTML
    """Why a run cannot start, or what is worth a look before it does."""
    save: gr.Button
    load: gr.UploadButton
    file: gr.DownloadButton
    """Hands a written recipe to the browser."""
    recipes: RecipePanel

    @property
    def outputs(self) -> list[Any]:
        """What follows from the settings."""
        return [self.total, self.prediction, self.start, self.said]


def build(door: Door, form: Form) -> SumCard:
    """Lay out the card."""
    with gr.Column(elem_classes="ls-card ls-sum", elem_id="sum"):
        gr.Button(text("sum_more"), size="sm", elem_id="sum-more").click(None, js=UNFOLD)
        gr.HTML(text("your_run"), elem_classes="ls-title")
        total = gr.HTML(elem_id="total")
        prediction = gr.HTML(elem_id="prediction", js_on_load=ON_FIX, padding=False)
        form.add(
            "name",
            gr.Textbox(
                label=text("run_name"), placeholder=text("run_name_hint"), max_lines=1,
                elem_id="run-name",
            ),
        )  # fmt: skip
        start = gr.Button(
            text("start"), variant="primary", size="lg", elem_id="start", interactive=False
        )
        said = gr.HTML(elem_id="said")
        with gr.Row():
            save = gr.Button(text("recipe_save"), size="sm", elem_id="recipe-save", min_width=80)
            load = gr.UploadButton(
                text("recipe_load"), file_types=[".yaml", ".yml"], size="sm",
                elem_id="recipe-load", min_width=80,
            )  # fmt: skip
        file = handed("recipe-file")
        recipes = RecipePanel(door)
    return SumCard(total, prediction, start, said, save, load, file, recipes)


def shown(
    outlook: Outlook, recipe: Recipe, found: Mapping[str, Any] | None, device: str, voice: Voice
) -> list[Any]:
    """Return what follows from the settings: sum, prediction, whether to start, and why not.

    Args:
        outlook: What can be said of the run.
        recipe: The settings.
        found: The report on the data, None while there is none.
        device: `cuda`, `mps` or `cpu`.
        voice: The person's language.
    """
    can_start = bool(outlook.info and found and not outlook.problems)
    return [
        _total(outlook, recipe, found, device, voice),
        _prediction(outlook, voice),
        gr.Button(interactive=can_start),
        _said(outlook, found, voice),
    ]


def _total(
    outlook: Outlook, recipe: Recipe, found: Mapping[str, Any] | None, device: str, voice: Voice
) -> Any:
    estimate, by_epochs = outlook.estimate, recipe.training.max_steps is None
    if estimate is None:
        return gr.skip() if outlook.info else ""
    return render.total(
        estimate.parameters,
        steps=estimate.steps,
        epochs=recipe.training.num_train_epochs if by_epochs else None,
        trained_tokens=found["trained_tokens"] if found else None,
        time=prediction_bar.time(estimate, voice),
        precision=outlook.precision,
        device=device.upper(),
        sorts=recipe.task_type == "SEQ_CLS",
        voice=voice,
    )


def _prediction(outlook: Outlook, voice: Voice) -> Any:
    if outlook.estimate is None:
        return gr.skip() if outlook.info else ""
    return prediction_bar.memory(outlook.estimate, outlook.fixes, voice)


def fixed(recipe: Recipe, event: gr.EventData) -> Recipe:
    """Return the recipe with the change that was clicked.

    Raises:
        RecipeError: If it is none; an event comes from a browser.
    """
    changes = getattr(event, "changes", None)
    named = changes if isinstance(changes, list) else []
    return recipe.changed([str(change) for change in named])


def _said(outlook: Outlook, found: Mapping[str, Any] | None, voice: Voice) -> str:
    """Return what keeps a run from starting, else what is worth a look before it does."""
    if outlook.problems:
        return "".join(render.problem(problem, voice) for problem in outlook.problems)
    odd = [warning.say(voice.language) for warning in outlook.warnings]
    steps = outlook.estimate.steps if outlook.estimate else None
    if steps is not None and steps < WORTH_TRAINING_STEPS:
        odd.insert(0, voice("few_steps", steps=steps))
    missing = "start_needs_model" if outlook.info is None else "start_needs_data"
    waits = "" if outlook.info and found else render.quiet(voice(missing))
    return waits + "".join(render.note(sentence, "warn") for sentence in odd)
