"""Cards 3 and 4: the adapter and the training, every control with its one-sentence reason."""

from __future__ import annotations

import typing

import gradio as gr

from lora_studio.hardware import Hardware, default_precision, precisions
from lora_studio.recipe import AdapterSpec, BiasName, SchedulerName, TrainingSpec
from lora_studio.ui.controls import slider
from lora_studio.ui.form import PROMPTS, Form, bounds
from lora_studio.ui.language import Voice, hint, text
from lora_studio.ui.render import note
from lora_studio.wording import say


def build_adapter(form: Form, hardware: Hardware, modules: tuple[str, ...]) -> gr.HTML:
    """Lay out the adapter card; return the sentence on the chosen precision."""
    default = AdapterSpec()
    with gr.Accordion(
        text("card_adapter"), open=True, elem_id="card-adapter", elem_classes="ls-card"
    ):
        with gr.Row():
            form.add(
                "adapter.r",
                slider(
                    1,
                    256,
                    value=default.r,
                    step=1,
                    label=text("r"),
                    info=hint("adapter.r"),
                    elem_id="r",
                ),
            )
            form.add(
                "adapter.lora_alpha",
                slider(
                    1, 512, value=default.lora_alpha, step=1, label="lora_alpha",
                    info=hint("adapter.lora_alpha"), elem_id="lora-alpha",
                ),
            )  # fmt: skip
        form.add(
            "adapter.target_modules",
            gr.CheckboxGroup(
                list(modules), value=list(modules), label=text("target_modules"),
                info=hint("adapter.target_modules"), elem_id="target-modules",
            ),
        )  # fmt: skip
        with gr.Row():
            form.add(
                "adapter.lora_dropout",
                slider(
                    0, 0.5, value=default.lora_dropout, step=0.01, label="lora_dropout",
                    info=hint("adapter.lora_dropout"),
                ),
            )  # fmt: skip
            form.add(
                "adapter.use_rslora",
                gr.Checkbox(
                    default.use_rslora,
                    label="rsLoRA (use_rslora)",
                    info=hint("adapter.use_rslora"),
                ),
            )
        with gr.Row():
            form.add(
                "adapter.bias",
                gr.Radio(
                    list(typing.get_args(BiasName)), value=default.bias, label=text("bias"),
                    info=hint("adapter.bias"),
                ),
            )  # fmt: skip
        form.add(
            "precision",
            gr.Radio(
                [(text("precision_auto"), "auto")]
                + [
                    (text(f"precision_{p.name}"), p.name)
                    for p in precisions(hardware)
                    if p.available
                ],
                value="auto",
                label=text("precision"),
                info=hint("precision"),
                elem_id="precision",
            ),
        )
        return gr.HTML(elem_id="precision-why")


def build_training(form: Form) -> None:
    """Lay out the training card."""
    default = TrainingSpec()
    with gr.Accordion(
        text("card_training"), open=True, elem_id="card-training", elem_classes="ls-card"
    ):
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


def precision_why(chosen: str, hardware: Hardware, voice: Voice) -> str:
    """Return why a precision suits this machine, and why the missing ones are not offered."""
    name = default_precision(hardware) if chosen == "auto" else chosen
    said, not_here = "", []
    for precision in precisions(hardware):
        sentence = say(precision.reason_key, voice.language, **precision.values)
        if precision.name == name:
            said = sentence
        elif not precision.available:
            not_here.append(sentence)
    return note(" ".join([said, *not_here]), "good")


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
