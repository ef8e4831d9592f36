"""An adapter from elsewhere: a zip that is dropped, a folder, a repository of the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.errors import AdapterError, StudioError
from lora_studio.models.sources import HUB_ID, local_models
from lora_studio.settings import STARTER, Settings
from lora_studio.ui import render
from lora_studio.ui.language import Voice, text
from lora_studio.ui.visitors import Door

MOST_CHARS = 4096


class AddPanel:
    """Lays the panel out and answers its button.

    Args:
        door: Opens the studio of a request.
    """

    def __init__(self, door: Door) -> None:
        self.door = door
        settings = door.main.settings
        with gr.Accordion(
            text("library_add"), open=False, elem_id="library-add", elem_classes="ls-card"
        ):
            with gr.Row():
                self.file = gr.File(
                    label=text("add_zip"), file_types=[".zip"], height=120, elem_id="add-zip"
                )
                with gr.Column():
                    self.what = gr.Textbox(
                        label=text("add_hub" if settings.space_id else "add_place"),
                        placeholder="owner/name", max_lines=1, elem_id="add-what",
                        visible=not settings.is_showcase,
                    )  # fmt: skip
                    self.base = gr.Dropdown(
                        [(text("add_base_said"), ""), STARTER, *local_models(settings)],
                        value="", label=text("add_base"), info=text("add_base_why"),
                        allow_custom_value=True, elem_id="add-base",
                        visible=not settings.is_showcase,
                    )  # fmt: skip
            self.go = gr.Button(
                text("add_go"), variant="primary", elem_id="add-go", scale=0, min_width=160
            )
            self.said = gr.HTML(elem_id="add-said")

    def add(
        self, file: Any, what: Any, base: Any, token: Any, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Take an adapter in; the table and the sheet then show it.

        Yields:
            What is going on, the table's value, the sheet's, what was chosen.
        """
        voice, studio = Voice(request), self.door.enter(request)
        skip = gr.skip()
        try:
            source, named = _source(file, what), _base(base, studio.settings)
            for event in studio.adapters.add(source, base=named, token=token or None):
                if "result" not in event:
                    yield render.stage(event, voice), skip, skip, skip, skip
                    continue
                new = event["result"]["id"]
                told = render.note(voice("add_done", name=new), "good")
                doubt = studio.library.entry(new).doubt
                if doubt is not None:
                    told += render.note(doubt.say(voice.language), "warn")
                yield told, new, new, None, ""
        except StudioError as error:
            yield render.problem(error, voice), skip, skip, skip, skip


def _source(file: Any, what: Any) -> str:
    """Return the dropped zip, else what was written.

    Raises:
        AdapterError: If there is neither.
    """
    if isinstance(file, str) and Path(file).is_file():
        return file
    source = str(what or "").strip()[:MOST_CHARS]
    if not source:
        raise AdapterError("library.nothing_given")
    return source


def _base(base: Any, settings: Settings) -> str:
    """Return what the adapter is to be checked against; a folder goes by its name in the list.

    Raises:
        AdapterError: If it is none of the list and no id of the Hub.
    """
    named = str(base or "").strip()
    folders = local_models(settings)
    if named in folders:
        return str(folders[named])
    if named in ("", STARTER) or HUB_ID.fullmatch(named):
        return named
    raise AdapterError("library.unknown_base", base=named[:200])
