"""The run that is shown: its list, its live view, and what can be done with it."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from lora_studio.errors import RunError, StudioError
from lora_studio.studio import Studio
from lora_studio.ui.language import Voice, text
from lora_studio.ui.live import live_view
from lora_studio.ui.outgoing import fresh_folder
from lora_studio.ui.visitors import Door


class RunPanel:
    """Builds the panel at the top of the Train tab and answers its events.

    The live view feeds itself, and tells of each new status: then the buttons follow.
    """

    def __init__(self, door: Door) -> None:
        self.door = door
        with gr.Row(elem_id="run-bar", elem_classes="ls-line", visible=False) as self.bar:
            self.run = gr.Dropdown([], label=text("run"), scale=3, elem_id="run", min_width=200)
            self.keep = _button("stop_keep")
            self.discard = _button("stop_discard")
            self.sure = _button("stop_sure", "stop")
            self.compare = _button("compare_now", "primary")
            self.download = _button("download")
            self.reuse = _button("reuse")
        self.file = gr.DownloadButton("", visible="hidden", elem_id="download-file")
        self.live = live_view(door)
        with gr.Accordion(
            text("run_recipe"), open=False, visible=False, elem_id="run-recipe"
        ) as self.settings:
            self.recipe = gr.Code(
                language="yaml", interactive=False, show_label=False, max_lines=24,
                show_line_numbers=False, buttons=["copy", "download"],
            )  # fmt: skip
        self.shown = gr.State("")
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
                self.discard,
                self.sure,
                self.compare,
                self.download,
                self.reuse,
            ],
            show_progress="hidden",
            concurrency_limit=None,
        )
        self.keep.click(self.stop_keeping, self.run, None)
        self.discard.click(
            lambda: (gr.Button(visible=False), gr.Button(visible=True)),
            None,
            [self.discard, self.sure],
            queue=False,
        )
        self.sure.click(self.stop_discarding, self.run, None)
        self.download.click(self.pack, self.run, self.file).then(
            None, js="() => document.querySelector('#download-file').click()"
        )

    def watch(self, run: Any, shown: Any, request: gr.Request) -> Any:
        """Show the buttons that make sense for the run as it stands; change nothing if they do."""
        studio = self.door.enter(request)
        try:
            history = studio.history(str(run)) if run else None
        except RunError:
            history = None
        status = f"{run}:{history.status}" if history else ""
        if status == shown:
            return gr.skip()
        over = history is None or history.is_over
        usable = history is not None and over and history.folder.newest_adapter() is not None
        busy, ready = gr.Button(visible=not over), gr.Button(visible=usable)
        again = gr.Button(visible=history is not None and over)
        return status, busy, busy, gr.Button(visible=False), ready, ready, again

    def show_recipe(self, run: Any, request: gr.Request) -> tuple[Any, str]:
        """Show the settings a run was started with, as its recipe file."""
        try:
            history = self.door.enter(request).history(str(run)) if run else None
            recipe = history.folder.read_recipe().to_yaml() if history else ""
        except StudioError:
            recipe = ""
        return gr.Accordion(visible=bool(recipe)), recipe

    def stop_keeping(self, run: Any, request: gr.Request) -> None:
        """Stop at the next step and keep what was learned."""
        self._stop(run, request, keep=True)

    def stop_discarding(self, run: Any, request: gr.Request) -> None:
        """End the run now."""
        self._stop(run, request, keep=False)

    def _stop(self, run: Any, request: gr.Request, *, keep: bool) -> None:
        try:
            self.door.enter(request).stop(str(run), keep=keep)
        except StudioError as error:
            raise toast(error, request) from error

    def pack(self, run: Any, request: gr.Request) -> str:
        """Zip the run's adapter for download."""
        try:
            return str(self.door.enter(request).archive(str(run), fresh_folder()))
        except StudioError as error:
            raise toast(error, request) from error


def run_choices(studio: Studio, chosen: str | None) -> Any:
    """Return the run list, one of them chosen."""
    return gr.Dropdown(choices=[history.folder.id for history in studio.runs()], value=chosen)


def toast(error: StudioError, request: gr.Request) -> gr.Error:
    """Return an error as the page shows it: a sentence, no traceback."""
    return gr.Error(escape(error.say(Voice(request).language)), print_exception=False)


def _button(name: str, variant: Any = "secondary") -> gr.Button:
    return gr.Button(
        text(name),
        visible=False,
        variant=variant,
        elem_id=name.replace("_", "-"),
        scale=0,
        min_width=140,
    )
