"""Taking an adapter where it is needed: as files of other programs, and to the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.exports.orders import DTYPES, FORMS, QUANTIZATIONS
from lora_studio.ui import render, shipped
from lora_studio.ui.controls import button, ready_again, start_and_stop
from lora_studio.ui.language import Voice, text
from lora_studio.ui.visitors import Door
from lora_studio.wording import LANGUAGES, say

AS_BASE = ""
WITH_DTYPE, WITH_QUANTIZATION = ("merged",), ("gguf", "ollama")


class ShipPanel:
    """Builds the panel for the entry that is opened, and answers its events.

    Args:
        door: Opens the studio of a request.
        opened: Its value is the id of the entry that is opened.
    """

    def __init__(self, door: Door, opened: gr.HTML) -> None:
        self.door = door
        self.opened = opened
        with gr.Accordion(text("ship"), open=False, visible=False, elem_id="ship") as self.part:
            with gr.Row(elem_classes="ls-line"):
                self.form = gr.Radio(
                    [(text(f"ship_{form}"), form) for form in FORMS], value="merged",
                    label=text("ship_as"), info=text("ship_as_why"), elem_id="ship-form",
                )  # fmt: skip
                self.dtype = gr.Dropdown(
                    [(text("ship_as_base"), AS_BASE), *DTYPES], value=AS_BASE,
                    label=text("ship_dtype"), elem_id="ship-dtype", min_width=160,
                )  # fmt: skip
                self.quantization = gr.Dropdown(
                    list(QUANTIZATIONS), value="q8_0", label=text("ship_quantization"),
                    elem_id="ship-quantization", min_width=160, visible=False,
                )  # fmt: skip
                self.start, self.stop = start_and_stop("ship_start")
            self.note = gr.HTML(elem_id="ship-note", padding=False)
            self.found = gr.HTML(elem_id="ship-found", padding=False)
            signs_in = door.main.settings.signs_in
            why = text("push_why_signed") if signs_in else text("push_why")
            with gr.Row(elem_classes="ls-line"):
                self.repository = gr.Textbox(
                    label=text("push_to"), placeholder="owner/name", info=why,
                    elem_id="push-to", scale=3, min_width=240,
                )  # fmt: skip
                self.merged, self.public, self.updates = (
                    gr.Checkbox(label=text(name), elem_id=name.replace("_", "-"))
                    for name in ("push_merged", "push_public", "push_updates")
                )
            with gr.Row(elem_classes="ls-line"):
                if signs_in:
                    _sign_in()
                self.look = button("push_look")
                self.push = button("push_start", variant="primary")
            self.said = gr.HTML(elem_id="push-said", padding=False)
            with gr.Accordion(text("snippets"), open=False, elem_id="snippets") as self.more:
                self.snippets = gr.HTML(elem_id="snippets-text", padding=False)

    def wire(self, token: gr.Textbox) -> None:
        """Tie the parts together; `token` is what the Hub is asked with."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None}
        self.form.change(
            lambda form: (
                gr.Dropdown(visible=form in WITH_DTYPE),
                gr.Dropdown(visible=form in WITH_QUANTIZATION),
            ),
            self.form, [self.dtype, self.quantization], show_progress="hidden", queue=False,
        )  # fmt: skip
        begin = [self.start, self.look, self.push]
        buttons = [*begin, self.stop]
        exporting = self.start.click(
            self.export, [self.opened, self.form, self.dtype, self.quantization, token],
            [self.found, self.note, *buttons], **quiet,
        )  # fmt: skip
        asked = [
            self.opened, self.repository, self.merged, self.public, self.updates, token,
        ]  # fmt: skip
        told = [self.said, *buttons]
        looking = self.look.click(self.show_push, asked, told, **quiet)
        pushing = self.push.click(self.bring, asked, told, **quiet)
        for work in (exporting, looking, pushing):
            work.then(**ready_again(begin, self.stop))
        self.stop.click(self.halt, None, self.stop, queue=False, show_progress="hidden")
        self.more.expand(self.show_snippets, self.opened, self.snippets, **quiet)

    @property
    def shown(self) -> list[Any]:
        """What `show` fills."""
        return [
            self.part, self.found, self.note, self.said, self.snippets, self.repository,
            self.merged, self.public, self.updates,
        ]  # fmt: skip

    def show(self, opened: str) -> list[Any]:
        """Return the panel for an entry that is opened, empty and as at first; hidden for none."""
        return [gr.Accordion(visible=bool(opened)), *[""] * 5, *[False] * 3]

    def export(
        self, name: Any, form: Any, dtype: Any, quantization: Any, token: Any,
        request: gr.Request,
    ) -> Iterator[Any]:  # fmt: skip
        """Export the adapter, with progress."""
        voice, studio, name = Voice(request), self.door.enter(request), str(name)
        yield "", render.busy(voice("ship_begins")), *_busy()
        unchanged = [gr.skip()] * 4
        try:
            work = studio.shipping.export(
                name, form, dtype=dtype or None, quantization=str(quantization),
                token=token or None,
            )  # fmt: skip
            for event in work:
                if "result" in event:
                    yield _of(name, shipped.exported(event["result"], voice)), "", *unchanged
                else:
                    yield gr.skip(), render.waiting(event, voice, of=name), *unchanged
        except StudioError as error:
            yield gr.skip(), _of(name, shipped.failed(error, voice)), *unchanged

    def show_push(
        self, request: gr.Request, who: gr.OAuthToken | None, *asked: Any
    ) -> Iterator[Any]:
        """List every file that would leave; nothing does."""
        yield from self._push(asked, who, request, is_dry=True)

    def bring(self, request: gr.Request, who: gr.OAuthToken | None, *asked: Any) -> Iterator[Any]:
        """Bring the adapter to the Hub, as the person who is signed in if there is one."""
        yield from self._push(asked, who, request, is_dry=False)

    def halt(self, request: gr.Request) -> Any:
        """Have the work end, if it has begun; what reads it says when it has ended."""
        if not self.door.enter(request).shipping.stop():
            return gr.skip()
        return gr.Button(Voice(request)("ship_stopping"), interactive=False)

    def show_snippets(self, name: Any, request: gr.Request) -> str:
        """Show how the adapter is used elsewhere."""
        voice = Voice(request)
        try:
            found = self.door.enter(request).shipping.snippets(str(name))
        except StudioError as error:
            return render.problem(error, voice)
        return "".join(shipped.snippet(one, voice) for one in found)

    def _push(
        self, asked: Any, who: gr.OAuthToken | None, request: gr.Request, *, is_dry: bool
    ) -> Iterator[Any]:
        voice, studio = Voice(request), self.door.enter(request)
        opened, repository, merged, public, updates, typed = asked
        name = str(opened)
        token = who.token if who else typed or None
        yield render.busy(voice("push_begins")), *_busy()
        unchanged = [gr.skip()] * 4
        try:
            work = studio.shipping.push(
                name, str(repository or ""), merged=bool(merged), private=not public,
                updates=bool(updates), is_dry=is_dry, token=token,
            )  # fmt: skip
            for event in work:
                if "result" in event:
                    yield _of(name, shipped.published(event["result"], voice)), *unchanged
                else:
                    yield render.waiting(event, voice, of=name), *unchanged
        except StudioError as error:
            yield _of(name, shipped.failed(error, voice)), *unchanged


def _busy() -> list[gr.Button]:
    off = gr.Button(interactive=False)
    return [off, off, off, gr.Button(interactive=True)]


def _sign_in() -> None:
    """Lay out Gradio's button, which compares its own text: so it is written in all languages."""
    words = [
        " · ".join(say(f"page.{key}", language) for language in LANGUAGES)
        for key in ("push_sign_in", "push_sign_out")
    ]
    gr.LoginButton(
        words[0], f"{words[1]} ({{}})", size="md", elem_id="push-sign-in", scale=0, min_width=180
    )


def _of(name: str, shown: str) -> str:
    """Return what came of work under the name of its adapter: another may be open by then."""
    return f'<div class="ls-measured"><h4>{escape(name)}</h4></div>{shown}'
