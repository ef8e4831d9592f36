"""The run that is shown: its list, its live view, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from lora_studio.cases.training import PATIENCE_S
from lora_studio.errors import RunError, StudioError
from lora_studio.runs.history import History
from lora_studio.studio import Studio
from lora_studio.ui import concerns
from lora_studio.ui.controls import button
from lora_studio.ui.language import Voice, text
from lora_studio.ui.live import live_view
from lora_studio.ui.outgoing import fresh_folder, hand_out, handed
from lora_studio.ui.queue_panel import queue_view
from lora_studio.ui.render import toast
from lora_studio.ui.visitors import Door


class RunPanel:
    """Builds the panel at the top of the Train tab and answers its events.

    The live view feeds itself, and tells of each new status: then the buttons follow.
    """

    def __init__(self, door: Door) -> None:
        self.door = door
        with gr.Row(elem_id="run-bar", elem_classes="ls-line", visible=False) as self.bar:
            self.run = gr.Dropdown([], label=text("run"), scale=3, elem_id="run", min_width=200)
            self.keep = button("stop_keep", visible=False)
            self.pause = button("stop_pause", visible=False)
            self.discard = button("stop_discard", visible=False)
            self.sure = button("stop_sure", visible=False, variant="stop")
            self.no = button("stop_not", visible=False)
            self.leave = button("stop_leave", visible=False)
            self.resume = button("resume", visible=False, variant="primary")
            self.compare = button("compare_now", visible=False, variant="primary")
            self.download = button("download", visible=False)
            self.reuse = button("reuse", visible=False)
        self.file = handed("download-file")
        self.queue = queue_view(door)
        self.live = live_view(door)
        with gr.Accordion(
            text("run_recipe"), open=False, visible=False, elem_id="run-recipe"
        ) as self.settings:
            self.recipe = gr.Code(
                language="yaml", interactive=False, show_label=False, max_lines=24,
                show_line_numbers=False, buttons=["copy", "download"],
            )  # fmt: skip
        self.shown = gr.State(None)
        self._wire()

    def _wire(self) -> None:
        self.run.change(
            lambda run: run or "", self.run, self.live, show_progress="hidden", queue=False
        )
        self.run.change(
            self.show_recipe, self.run, [self.settings, self.recipe], show_progress="hidden"
        )
        gr.on(
            [self.live.tick, self.run.change],
            self.watch,
            [self.run, self.shown],
            [
                self.shown,
                self.keep,
                self.pause,
                self.discard,
                self.sure,
                self.no,
                self.leave,
                self.resume,
                self.compare,
                self.download,
                self.reuse,
            ],
            show_progress="hidden",
            trigger_mode="always_last",  # the last tick of a run is its only word of the end
            concurrency_limit=None,
        )
        self.keep.click(self.stop_keeping, self.run, None)
        self.pause.click(self.stop_pausing, self.run, None)
        asked = [self.keep, self.pause, self.discard, self.sure, self.no]
        self.discard.click(lambda: _asking(sure=True), None, asked, queue=False)
        self.no.click(lambda: _asking(sure=False), None, asked, queue=False)
        self.sure.click(self.stop_discarding, self.run, None)
        self.leave.click(self.leave_queue, self.run, None)
        self.live.click(self.retry, None, self.run, show_progress="hidden")
        hand_out(self.download.click(self.pack, self.run, self.file), self.file)

    def watch(self, run: Any, shown: Any, request: gr.Request) -> Any:
        """Show the buttons that make sense for the run as it stands; change nothing if they do."""
        history = _known(self.door.enter(request), run)
        over = history is None or history.is_over
        usable = history is not None and over and history.folder.newest_adapter() is not None
        waits = history is not None and history.status == "queued"
        resumable = history is not None and history.resumable is not None
        # Not the status itself, each change of which would take back “Really discard?”.
        stands = (run if history else None, over, usable, waits, resumable)
        if stands == shown:
            return gr.skip()
        busy, ready = gr.Button(visible=not over and not waits), gr.Button(visible=usable)
        asks, again = gr.Button(visible=False), gr.Button(visible=history is not None and over)
        leaves = gr.Button(visible=waits)
        resume = gr.Button(visible=resumable)
        compare = gr.Button(visible=usable, variant="secondary" if resumable else "primary")
        return stands, busy, busy, busy, asks, asks, leaves, resume, compare, ready, again

    def follow(self, run: Any, request: gr.Request) -> tuple[Any, Any]:
        """Show what trains now, whoever started it, unless the run that is shown goes on."""
        studio = self.door.enter(request)
        active, shown = studio.runs.active(), _known(studio, run)
        if active is None or (shown is not None and not shown.is_over):
            return gr.skip(), gr.skip()
        return gr.Row(visible=True), run_choices(studio, active.folder.id)

    def show_recipe(self, run: Any, request: gr.Request) -> tuple[Any, str]:
        """Show the settings a run was started with, as its recipe file."""
        try:
            history = self.door.enter(request).runs.history(str(run)) if run else None
            recipe = history.folder.read_recipe().to_yaml() if history else ""
        except StudioError:
            recipe = ""
        return gr.Accordion(visible=bool(recipe)), recipe

    def stop_keeping(self, run: Any, request: gr.Request) -> None:
        """Stop at the next step and keep what was learned."""
        self._act(lambda studio: studio.training.stop(str(run), keep=True), request)
        self._say_when(run, request)

    def stop_pausing(self, run: Any, request: gr.Request) -> None:
        """Stop at the next step, to go on from there later."""
        self._act(lambda studio: studio.training.pause(str(run)), request)
        self._say_when(run, request)

    def stop_discarding(self, run: Any, request: gr.Request) -> None:
        """End the run now."""
        self._act(lambda studio: studio.training.stop(str(run), keep=False), request)

    def leave_queue(self, run: Any, request: gr.Request) -> None:
        """Take the run out of the queue."""
        self._act(lambda studio: studio.line.remove(str(run)), request)

    def go_on(self, run: Any, token: Any, request: gr.Request) -> None:
        """Let a run that was broken off go on from its last checkpoint, or line it up."""
        self._act(lambda studio: studio.training.resume(str(run), token=token or None), request)
        studio, voice = self.door.enter(request), Voice(request)
        if str(run) in studio.line.waiting():
            concerns.say_place(studio, str(run), voice)
        else:
            gr.Info(voice("resume_asked"))

    def retry(self, event: gr.EventData, request: gr.Request) -> Any:
        """Start the run again with the settings of the button that was clicked, and show it."""
        studio = self.door.enter(request)
        try:
            run = concerns.retried(studio, event)
        except StudioError as error:
            raise toast(error, request) from error
        if run is None:
            return gr.skip()
        if run in studio.line.waiting():
            concerns.say_place(studio, run, Voice(request))
            return gr.skip()
        return run_choices(studio, run)

    def _act(self, act: Callable[[Studio], None], request: gr.Request) -> None:
        try:
            act(self.door.enter(request))
        except StudioError as error:
            raise toast(error, request) from error

    def _say_when(self, run: Any, request: gr.Request) -> None:
        """Tell who asked to stop that the step under way is still made, and what else they can."""
        if not self.door.enter(request).runs.history(str(run)).is_over:
            gr.Info(Voice(request)("stop_asked", seconds=int(PATIENCE_S)))

    def pack(self, run: Any, request: gr.Request) -> str:
        """Zip the run's adapter for download."""
        try:
            return str(self.door.enter(request).adapters.archive(str(run), fresh_folder()))
        except StudioError as error:
            raise toast(error, request) from error


def _known(studio: Studio, run: Any) -> History | None:
    """Return what a run has been through; None for none, and for one that is gone."""
    try:
        return studio.runs.history(str(run)) if run else None
    except RunError:
        return None


def run_choices(studio: Studio, chosen: str | None) -> Any:
    """Return the run list, one of them chosen."""
    return gr.Dropdown(choices=[folder.id for folder in studio.runs.folders()], value=chosen)


def _asking(*, sure: bool) -> tuple[gr.Button, ...]:
    """Return the buttons of a running run: what can be asked, or whether it is meant."""
    asks, answers = gr.Button(visible=not sure), gr.Button(visible=sure)
    return asks, asks, asks, answers, answers
