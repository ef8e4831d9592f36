"""On how many devices and machines a run trains; for a cluster, what to type on each machine."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.errors import RecipeError
from lora_studio.exports import cluster
from lora_studio.hardware import Hardware
from lora_studio.recipe import LaunchSpec, Recipe, StrategyName
from lora_studio.runs import launching
from lora_studio.runs.folder import slug
from lora_studio.ui import render
from lora_studio.ui.form import Form
from lora_studio.ui.language import Voice, hint, text

SECTION = "launch."


@dataclass(frozen=True, slots=True)
class LaunchChoice:
    """The components of this part."""

    said: gr.HTML
    """What to do with the commands, or what does not fit."""
    commands: gr.Code
    slurm: gr.Code

    @property
    def outputs(self) -> list[Any]:
        """What follows from the settings, in the order of `shown`."""
        return [self.said, self.commands, self.slurm]


def build(form: Form, hardware: Hardware) -> LaunchChoice:
    """Lay out this part of the training card.

    How many devices to use is in sight where there are several, else beside the cluster's settings.

    Args:
        form: Gets the controls of six settings.
        hardware: The machine.
    """
    has_several = hardware.device_count > 1
    if has_several:
        _devices(form)
    title = text("launch_machines" if has_several else "launch")
    with gr.Accordion(title, open=False, elem_id="launch"):
        if not has_several:
            _devices(form)
        _machines(form)
        said = gr.HTML(
            text("launch_one"), elem_id="launch-said", elem_classes="ls-quiet", padding=False
        )
        commands = _code("launch_commands", "launch-commands")
        slurm = _code("launch_slurm", "launch-slurm")
    return LaunchChoice(said, commands, slurm)


def wire(choice: LaunchChoice, form: Form) -> None:
    """Have the commands follow the settings."""
    paths = [path for path in form.controls if path.startswith(SECTION)]
    controls = [form.controls[path] for path in ("name", *paths)]

    def follow(request: gr.Request, name: Any, *values: Any) -> list[Any]:
        return shown(dict(zip(paths, values, strict=True)), str(name or ""), Voice(request))

    gr.on(
        [control.change for control in controls],
        follow, controls, choice.outputs,
        show_progress="hidden", trigger_mode="always_last", queue=False,
    )  # fmt: skip


def shown(settings: dict[str, Any], name: str, voice: Voice) -> list[Any]:
    """Return what is said, the commands and the script for settings off the page.

    Args:
        settings: By their dotted paths, as `launch.num_machines`; nothing of them is trusted.
        name: What the run is called.
        voice: The person's language.
    """
    hidden = gr.Code(visible=False)
    section = {path.removeprefix(SECTION): value for path, value in settings.items()}
    try:
        launch = Recipe.from_dict({"launch": section}).launch
    except RecipeError as error:
        return [said_of_error(error, voice), hidden, hidden]
    problems = launching.misfits(launch)
    if problems:
        return [said_of_error(RecipeError.of(problems), voice), hidden, hidden]
    if launch.num_machines == 1:
        return [voice("launch_one"), hidden, hidden]
    said = voice("launch_many", file=cluster.RECIPE, rank=launch.machine_rank)
    return [
        render.note(said, "good"),
        gr.Code(cluster.commands(launch, voice.language), visible=True),
        gr.Code(cluster.slurm_script(launch, slug(name), voice.language), visible=True),
    ]


def said_of_error(error: RecipeError, voice: Voice) -> str:
    """Return the problems of these settings in a box."""
    return render.note("\n".join(problem.say(voice.language) for problem in error.problems))


def _devices(form: Form) -> None:
    default = LaunchSpec()
    with gr.Row():
        _number(form, "num_processes", default.num_processes)
        form.add(
            f"{SECTION}strategy",
            gr.Radio(
                _named(typing.get_args(StrategyName)), value=default.strategy,
                label=text("strategy"), info=hint(f"{SECTION}strategy"), elem_id="strategy",
            ),
        )  # fmt: skip


def _machines(form: Form) -> None:
    default = LaunchSpec()
    with gr.Row():
        _number(form, "num_machines", default.num_machines)
        _number(form, "machine_rank", default.machine_rank)
    with gr.Row():
        form.add(
            f"{SECTION}main_process_ip",
            gr.Textbox(
                default.main_process_ip, label=text("main_process_ip"), max_lines=1,
                info=hint(f"{SECTION}main_process_ip"), elem_id="main-process-ip",
            ),
        )  # fmt: skip
        _number(form, "main_process_port", default.main_process_port)


def _number(form: Form, name: str, value: int) -> None:
    form.add(
        f"{SECTION}{name}",
        gr.Number(
            value, label=text(name), info=hint(f"{SECTION}{name}"), precision=0,
            elem_id=name.replace("_", "-"),
        ),
    )  # fmt: skip


def _named(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name.upper(), name) for name in names]


def _code(label: str, elem_id: str) -> gr.Code:
    return gr.Code(
        language="shell", interactive=False, visible=False, label=text(label), elem_id=elem_id,
        max_lines=32, wrap_lines=True, show_line_numbers=False, buttons=["copy", "download"],
    )  # fmt: skip
