"""The Library tab: the table, one entry opened, several side by side, the x-ray, what comes in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.runs.folder import WEIGHTS
from lora_studio.ui import render
from lora_studio.ui.language import Voice
from lora_studio.ui.library_add import AddPanel
from lora_studio.ui.library_sheet import sheet_view
from lora_studio.ui.library_table import table_view
from lora_studio.ui.library_together import chosen_value, together_view
from lora_studio.ui.library_xray import value_of, xray_view
from lora_studio.ui.outgoing import fresh_folder, hand_out, handed
from lora_studio.ui.ship_panel import ShipPanel
from lora_studio.ui.visitors import Door


class LibraryTab:
    """Lays the tab out and answers its events.

    Table, sheet and picture feed themselves; here they are told what to show. Of the sheet's
    events `submit` (compare) and `retry` (reuse) lead to other tabs: the page wires them.

    Args:
        door: Opens the studio of a request.
    """

    def __init__(self, door: Door) -> None:
        self.door = door
        self.table = table_view(door)
        self.together = together_view(door)
        self.sheet = sheet_view(door)
        self.note = gr.HTML(elem_id="library-note")
        self.xray = xray_view()
        self.ship = ShipPanel(door, self.sheet)
        self.adding = AddPanel(door)
        self.file = handed("library-file")

    def wire(self, token: gr.Textbox) -> None:
        """Tie the parts together; `token` is what the Hub is asked with."""
        self.table.select(
            self.choose, self.sheet, [self.sheet, self.together, self.note],
            show_progress="hidden", queue=False,
            trigger_mode="multiple",  # each click has its own row: the last one counts
        )  # fmt: skip
        # However another entry was opened, nothing of the last one stays beside it.
        self.sheet.change(
            self.show, self.sheet, [self.xray, *self.ship.shown],
            show_progress="hidden", queue=False,
        )  # fmt: skip
        self.sheet.expand(
            self.look, token, [self.note, self.xray],
            show_progress="hidden", concurrency_limit=None,
        )  # fmt: skip
        self.xray.apply(
            self.shrink, None, [self.note, self.table, self.sheet],
            show_progress="hidden", concurrency_limit=None,
        )  # fmt: skip
        hand_out(self.sheet.download(self.pack, None, self.file, show_progress="hidden"), self.file)
        self.ship.wire(token)
        panel = self.adding
        panel.go.click(
            panel.add, [panel.file, panel.what, panel.base, token],
            [panel.said, self.table, self.sheet, panel.file, panel.what],
            show_progress="hidden", concurrency_limit=None,
        )  # fmt: skip

    def choose(self, shown: Any, event: gr.EventData) -> tuple[Any, ...]:
        """Show the entry that was opened, and several that were chosen side by side."""
        opened, chosen = _text(event, "open"), getattr(event, "chosen", None)
        ids = [one for one in chosen if isinstance(one, str)] if isinstance(chosen, list) else []
        if opened == shown:
            return gr.skip(), chosen_value(ids), gr.skip()
        return opened, chosen_value(ids), ""

    def show(self, opened: Any) -> list[Any]:
        """Return what stands beside an entry that was just opened: nothing yet but the panel."""
        return ["", *self.ship.show(str(opened or ""))]

    def look(self, token: Any, event: gr.EventData, request: gr.Request) -> Iterator[Any]:
        """Look into an adapter, with progress."""
        voice, studio, name = Voice(request), self.door.enter(request), _text(event, "id")
        try:
            named = studio.adapters.resolve(name)
            for news in studio.adapters.xray(name, token=token or None):
                if "result" not in news:
                    yield render.stage(news, voice), gr.skip()
                    continue
                shown = studio.library.entry(name).name
                size = (named.folder / WEIGHTS).stat().st_size
                yield "", value_of(name, shown, size, news["result"], voice)
        except StudioError as error:
            yield render.problem(error, voice), ""

    def shrink(self, event: gr.EventData, request: gr.Request) -> Iterator[Any]:
        """Write an adapter at the rank of the slider, measure it, and show the new one."""
        voice, studio, name = Voice(request), self.door.enter(request), _text(event, "id")
        rank, skip = getattr(event, "rank", None), gr.skip()
        try:
            for news in studio.shrinking.shrink(name, rank if isinstance(rank, int) else 0):
                if "stage" in news:
                    yield render.stage(news, voice), skip, skip
                elif "result" in news:
                    found = news["result"]
                    new = found["id"]
                    yield render.note(_made(found, voice), "good"), new, new
        except StudioError as error:
            yield render.problem(error, voice), skip, skip

    def pack(self, event: gr.EventData, request: gr.Request) -> str:
        """Zip an adapter for download."""
        try:
            studio = self.door.enter(request)
            return str(studio.adapters.archive(_text(event, "id"), fresh_folder()))
        except StudioError as error:
            raise render.toast(error, request) from error


def _made(found: Mapping[str, Any], voice: Voice) -> str:
    """Return what came of making an adapter smaller."""
    told, loss, unchecked = voice("xray_made", name=found["id"]), found["loss"], found["unchecked"]
    if loss is not None:
        return f"{told} {voice('xray_measured', **_rounded(loss))}"
    why = unchecked.say(voice.language) if unchecked else voice("xray_not_measured")
    return f"{told} {why}"


def _rounded(loss: Mapping[str, Any]) -> dict[str, str]:
    return {"rows": f"{loss['rows']:,}", **{at: f"{loss[at]:.4f}" for at in ("before", "after")}}


def asked_for(event: gr.EventData) -> str:
    """Return the name of the adapter or run that a button of the sheet is about."""
    return _text(event, "id")


def _text(event: gr.EventData, name: str) -> str:
    """Return a text that a browser sent with an event; empty for anything else."""
    value = getattr(event, name, None)
    return value if isinstance(value, str) else ""
