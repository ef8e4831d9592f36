"""Cards 4 and 5: how long and how fast it learns, and what it is asked meanwhile."""

from __future__ import annotations

import typing
from dataclasses import dataclass

import gradio as gr

from lora_studio.errors import RecipeError
from lora_studio.outlook import Outlook
from lora_studio.recipe import SamplingName, SchedulerName, TrainingSpec
from lora_studio.training.trackers import TRACKERS
from lora_studio.ui import prediction_bar
from lora_studio.ui.controls import slider
from lora_studio.ui.form import PROMPTS, Form, bounds
from lora_studio.ui.language import Voice, hint, text
from lora_studio.ui.render import note


@dataclass(frozen=True, slots=True)
class TrainingCard:
    """The components the page's handlers need."""

    card: gr.Accordion
    said: gr.HTML
    """What is worth a look about the learning rate and the batch, beside them."""


def said_of(outlook: Outlook, voice: Voice) -> str:
    """Return what of rate, batch and length will disappoint, or does not fit."""
    odd = "\n".join(warning.say(voice.language) for warning in outlook.warnings)
    found = outlook.estimate
    over = found is not None and found.verdict == "will_not_fit"
    box = prediction_bar.verdict(found, voice) if found and over else ""
    return box + (note(odd, "warn") if odd else "")


def said_of_error(error: RecipeError, voice: Voice) -> str:
    """Return the problems of a recipe that are about this card's controls."""
    found = [
        problem.say(voice.language)
        for problem in error.problems
        if str(problem.values.get("name", "")).startswith("training.")
    ]
    return note("\n".join(found)) if found else ""


def build_training(form: Form) -> TrainingCard:
    """Lay out the training card."""
    default = TrainingSpec()
    with gr.Accordion(
        text("card_training"), open=True, elem_id="card-training", elem_classes="ls-card",
        visible=False,
    ) as card:  # fmt: skip
        with gr.Row():
            _number(form, "training.num_train_epochs", default.num_train_epochs, "epochs")
            _number(form, "training.max_steps", default.max_steps, "max_steps", precision=0)
            _number(form, "training.learning_rate", default.learning_rate, "learning_rate")
        with gr.Row():
            _slider(
                form,
                "training.per_device_train_batch_size",
                default.per_device_train_batch_size,
                64,
            )
            _slider(
                form,
                "training.gradient_accumulation_steps",
                default.gradient_accumulation_steps,
                64,
            )
        said = gr.HTML(elem_id="training-said", padding=False)
        with gr.Accordion(text("more_training"), open=False):
            with gr.Row():
                form.add(
                    "training.lr_scheduler_type",
                    gr.Dropdown(
                        list(typing.get_args(SchedulerName)), value=default.lr_scheduler_type,
                        label=text("scheduler"), info=hint("training.lr_scheduler_type"),
                    ),
                )  # fmt: skip
                form.add(
                    "training.warmup_ratio",
                    slider(
                        0, 0.5, value=default.warmup_ratio, step=0.01, label=text("warmup"),
                        info=hint("training.warmup_ratio"),
                    ),
                )  # fmt: skip
            with gr.Row():
                _number(form, "training.eval_steps", default.eval_steps, "eval_steps", precision=0)
                _number(form, "seed", 42, "seed", precision=0)
            _checkpoints(form, default)
            _speed(form, default)
            _switch(form, "training.auto_find_batch_size", value=default.auto_find_batch_size)
            form.add(
                "training.report_to",
                gr.CheckboxGroup(
                    [(tracker.title, name) for name, tracker in TRACKERS.items()],
                    label=text("report_to"), info=hint("training.report_to"), elem_id="report-to",
                ),
            )  # fmt: skip
    return TrainingCard(card, said)


def _checkpoints(form: Form, default: TrainingSpec) -> None:
    """Lay out how often a checkpoint is written, which of them stay, and when there is enough."""
    with gr.Row():
        for name in ("save_steps", "save_total_limit", "early_stopping_patience"):
            _number(form, f"training.{name}", getattr(default, name), name, precision=0)
    _switch(
        form,
        "training.load_best_model_at_end",
        value=default.load_best_model_at_end,
        elem_id="load-best",
    )


def _speed(form: Form, default: TrainingSpec) -> None:
    """Lay out what changes how fast it goes, and not what is learned from a row."""
    with gr.Row():
        form.add(
            "training.train_sampling_strategy",
            gr.Dropdown(
                list(typing.get_args(SamplingName)), value=default.train_sampling_strategy,
                label=text("train_sampling_strategy"),
                info=hint("training.train_sampling_strategy"), elem_id="train-sampling-strategy",
            ),
        )  # fmt: skip
        _switch(form, "training.torch_compile", value=default.torch_compile)


def build_prompts(form: Form) -> None:
    """Lay out the card of the questions that are answered while it learns."""
    with gr.Accordion(
        text("card_prompts"), open=False, elem_id="card-prompts", elem_classes="ls-card"
    ):
        gr.Markdown(text("prompts_why"), elem_classes="ls-quiet")
        for number in range(PROMPTS):
            form.add(
                f"prompts.{number}",
                gr.Textbox(
                    label=text(f"prompt_{number + 1}"), max_lines=3, elem_id=f"prompt-{number}"
                ),
            )


def _number(
    form: Form, path: str, value: float | None, label: str, precision: int | None = None
) -> None:
    form.add(
        path,
        gr.Number(
            value, label=text(label), info=hint(path), precision=precision,
            elem_id=path.rpartition(".")[2].replace("_", "-"),
        ),
    )  # fmt: skip


def _slider(form: Form, path: str, value: int, high: int) -> None:
    name = path.rpartition(".")[2]
    form.add(
        path,
        slider(
            bounds(path)["minimum"], high, value=value, step=1, label=text(name), info=hint(path),
            elem_id=name.replace("_", "-"),
        ),
    )  # fmt: skip


def _switch(form: Form, path: str, *, value: bool, elem_id: str = "") -> None:
    name = path.rpartition(".")[2]
    form.add(
        path,
        gr.Checkbox(
            value, label=text(name), info=hint(path),
            elem_id=elem_id or name.replace("_", "-"),
        ),
    )  # fmt: skip
