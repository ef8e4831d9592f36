"""Goals instead of knobs: what the text is for chooses every setting, each with its reason.

In the simple mode all settings are as recommended; with all settings open, those that differ are
counted, and each has a button that puts it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal, get_args

import gradio as gr

from lora_studio.hardware import Hardware
from lora_studio.models.description import ModelInfo
from lora_studio.recipe import ALL_LINEAR, CLASSIFICATION, FormatName, Recipe
from lora_studio.recommendations.choosing import recommend
from lora_studio.recommendations.recommendation import (
    DataFacts,
    Recommendation,
    Recommended,
    differing,
)
from lora_studio.recommendations.table import GOAL_NAMES, GOALS, GoalName
from lora_studio.ui import render
from lora_studio.ui.form import EXPRESSION, Form
from lora_studio.ui.language import Voice, text
from lora_studio.wording import say, table

ModeName = Literal["simple", "all"]
FORMAT = "data.format"
# Labels of the controls that are not called like their setting.
LABELS = {
    FORMAT: "data_format",
    "training.num_train_epochs": "epochs",
    "training.lr_scheduler_type": "scheduler",
    "training.warmup_ratio": "warmup",
}
# A click on a button of the list is an event of the component, with the button's setting. (Under
# the name `path` Gradio would take it for a file.)
ON_CLICK = """\
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-setting]');
  if (button) trigger('click', { setting: button.dataset.setting });
});"""


@dataclass(frozen=True, slots=True)
class GoalPanel:
    """The components the page's handlers need."""

    mode: gr.Radio
    """`simple` or `all`."""
    goal: gr.Radio
    """One of `GOAL_NAMES`."""
    chosen: gr.HTML
    """The recommended values with their reasons."""
    differs: gr.HTML
    """How many settings differ; a click on a button inside it gives the setting's path."""


def build() -> GoalPanel:
    """Lay out the goals, the list of what they choose, and the count of what differs."""
    goal = gr.Radio(
        [(text(f"goal_{name}"), name) for name in GOAL_NAMES],
        value=GOAL_NAMES[0],
        label=text("goal_label"),
        elem_id="goal",
        elem_classes="ls-goals",
    )
    mode = gr.Radio(
        [(text(f"mode_{name}"), name) for name in get_args(ModeName)],
        value="simple",
        label=text("mode_label"),
        elem_id="settings-mode",
    )
    differs = gr.HTML(elem_id="goal-differs", js_on_load=ON_CLICK, padding=False)
    with gr.Accordion(text("goal_values"), open=False, elem_id="goal-values"):
        chosen = gr.HTML(elem_id="goal-chosen", padding=False)
    return GoalPanel(mode, goal, chosen, differs)


def goal_of(value: Any) -> GoalName:
    """Return the goal a control or a draft names; anything else is the first."""
    return value if value in GOAL_NAMES else GOAL_NAMES[0]


def sorts(goal: Any) -> bool:
    """Say whether a goal sorts texts into classes instead of writing."""
    return GOALS[goal_of(goal)].sorts


def format_for(goal: Any, now: Any) -> FormatName:
    """Return how rows are to be read for a goal, given how they are read now."""
    if sorts(goal):
        return CLASSIFICATION
    return "auto" if now == CLASSIFICATION else now


def follow_format(format_: Any, now: Any) -> Any:
    """Return the goal that goes with how rows are read, unless the present one does."""
    wanted = format_ == CLASSIFICATION
    if sorts(now) == wanted:
        return gr.skip()
    return next(name for name in GOAL_NAMES if GOALS[name].sorts == wanted)


def mode_of(value: Any) -> ModeName:
    """Return the mode a control or a draft names; anything else is the simple one."""
    return "all" if value == "all" else "simple"


def recommendation(
    goal: Any, found: Mapping[str, Any] | None, info: ModelInfo | None, hardware: Hardware
) -> Recommendation | None:
    """Return what is recommended, or None while there is no model or no text read for the goal.

    Args:
        goal: What the goal's control holds.
        found: The report of the last preview.
        info: The chosen model.
        hardware: The machine.
    """
    if not found or info is None or sorts(goal) != (found.get("format") == CLASSIFICATION):
        return None
    return recommend(goal_of(goal), DataFacts.from_report(found), info, hardware)


def asked_path(event: gr.EventData, recommended: Recommendation) -> str | None:
    """Return the setting whose reset button was clicked; `all` stands for every one of them."""
    path = getattr(event, "setting", None)
    return path if path == "all" or path in recommended.values else None


def put(form: Form, recipe: Recipe, recommended: Recommendation, *paths: str) -> list[Any]:
    """Return the form's values with recommended ones in place, in the order of `form.inputs`.

    Only controls whose setting changes get a value; the others are skipped.

    Args:
        form: The page's controls.
        recipe: What they show now.
        recommended: What to put in.
        paths: The settings to put back; none means all.
    """
    wanted = [path for path in differing(recipe, recommended) if not paths or path in paths]
    if "adapter.target_modules" in wanted:
        wanted.append(EXPRESSION)  # its second control, which would count for more
    if not wanted:
        return [gr.skip() for _ in form.controls]
    values = form.values(
        recommended.applied(recipe, *(set(wanted) - {EXPRESSION})), recommended.module_names
    )
    return [
        value if path in wanted else gr.skip()
        for path, value in zip(form.controls, values, strict=True)
    ]


def put_format(form: Form, goal: Any, values: Sequence[Any], puts: Sequence[Any]) -> list[Any]:
    """Return what is put into the form, with rows read as the goal wants it.

    Args:
        form: The page's controls.
        goal: What the goal's control holds.
        values: What the form's controls hold.
        puts: What is put into them otherwise.
    """
    now = dict(zip(form.controls, values, strict=True)).get(FORMAT)
    wanted = format_for(goal, now)
    return [
        wanted if path == FORMAT and wanted != now else value
        for path, value in zip(form.controls, puts, strict=True)
    ]


def show(recipe: Recipe, recommended: Recommendation | None, voice: Voice) -> tuple[str, str]:
    """Return the HTML of `chosen` and of `differs`."""
    if recommended is None:
        waiting = render.quiet(voice("goal_waits"))
        return waiting, needs_labels(voice) if recipe.task_type == "SEQ_CLS" else ""
    return values_list(recommended, voice), differences(recipe, recommended, voice)


def needs_labels(voice: Voice) -> str:
    """Return what classification needs of the data."""
    return f'<p class="ls-quiet ls-differs" role="status">{escape(voice("goal_needs_labels"))}</p>'


def values_list(recommended: Recommendation, voice: Voice) -> str:
    """Return every recommended value with its reason and source."""
    rows = "".join(
        f"<li><b>{escape(label(path, voice))}</b>"
        f"<span class=v>{escape(shown_value(path, entry.value, recommended, voice))}</span>"
        f"<p>{escape(reason(entry, voice))} {source(entry)}</p></li>"
        for path, entry in recommended.values.items()
    )
    return f'<ul class="ls-chosen">{rows}</ul>'


def differences(recipe: Recipe, recommended: Recommendation, voice: Voice) -> str:
    """Return how many settings differ from the recommendation, with a button for each."""
    paths = differing(recipe, recommended)
    if not paths:
        return f'<p class="ls-quiet ls-differs" role="status">{escape(voice("differs_none"))}</p>'
    rows = "".join(_difference(path, recipe, recommended, voice) for path in paths)
    key = "differs_one" if len(paths) == 1 else "differs"
    every = (
        f'<button type=button data-setting="all">{escape(voice("differs_reset_all"))}</button>'
        if len(paths) > 1
        else ""
    )
    return (
        f'<div class="ls-differs"><p><b role="status">{escape(voice(key, n=len(paths)))}</b>'
        f"{every}</p><ul>{rows}</ul></div>"
    )


def _difference(path: str, recipe: Recipe, recommended: Recommendation, voice: Voice) -> str:
    name = label(path, voice)
    now = shown_value(path, recipe.value(path), recommended, voice)
    wanted = shown_value(path, recommended.values[path].value, recommended, voice)
    does = voice("differs_reset", name=name, value=wanted)
    return (
        f"<li><span>{escape(name)}: {escape(now)}</span>"
        f'<button type=button data-setting="{path}" aria-label="{escape(does)}" '
        f'title="{escape(reason(recommended.values[path], voice))}">'
        f"{escape(voice('differs_back', value=wanted))}</button></li>"
    )


def label(path: str, voice: Voice) -> str:
    """Return what the setting's control is called; `lora_alpha` is called by its own name."""
    key = LABELS.get(path, path.rpartition(".")[2])
    return voice(key) if f"page.{key}" in table() else key


def shown_value(path: str, value: Any, recommended: Recommendation, voice: Voice) -> str:
    """Return a value as the list says it."""
    if value is None:
        return voice("value_none")
    if path == FORMAT:
        return voice(f"format_{value}")
    if path == "precision":
        name = recommended.precision
        return f"{voice('precision_auto')} ({name})" if value == "auto" else str(value)
    if path == "adapter.target_modules":
        return _targets(value, recommended.module_names, voice)
    if path == "data.eval_fraction":
        return f"{value:.3g}" if value else voice("value_none")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _targets(value: str | Sequence[str], names: Sequence[str], voice: Voice) -> str:
    if value == ALL_LINEAR or set(value) == set(names):
        return voice("value_all_linear")
    return value if isinstance(value, str) else ", ".join(value)


def reason(entry: Recommended, voice: Voice) -> str:
    """Return why a value is recommended, in the person's language."""
    return say(entry.reason_key, voice.language, **entry.reason_values)


def source(entry: Recommended) -> str:
    """Return where a value is known from, as a link."""
    title, url = escape(entry.source.title), entry.source.url
    if not url:
        return f"<cite>{title}</cite>"
    return f'<cite><a href="{escape(url)}" target="_blank" rel="noopener">{title}</a></cite>'
