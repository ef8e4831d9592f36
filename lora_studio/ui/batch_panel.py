"""A list of prompts put to everybody who is chosen, as a table that grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.judging.batch import Asked, Batch
from lora_studio.judging.prompts import Prompt, as_lines, parse_prompts
from lora_studio.studio import Studio
from lora_studio.ui import render
from lora_studio.ui.asking import Terms
from lora_studio.ui.batch_table import choices, progress, shown
from lora_studio.ui.controls import ENGINE, dropdown, ready_again, slider, start_and_stop
from lora_studio.ui.language import Voice, text
from lora_studio.ui.outgoing import fresh_folder, hand_out, handed
from lora_studio.ui.visitors import Door, asker

PLACE = "batch"
"""What stop knows these questions by."""
MOST_HELD_OUT = 256
TABLE_EVERY_S = 0.5
"""A browser takes some time to draw the whole table anew."""


class BatchPanel:
    """Builds the part for many questions and answers its events.

    Args:
        door: Opens the studio of a request.
        controls: Say who answers, and how, as `Terms` reads them.
    """

    def __init__(self, door: Door, controls: Sequence[Any]) -> None:
        self.door = door
        with gr.Accordion(text("batch"), open=False, elem_id="batch") as self.fold:
            self.prompts = gr.Textbox(
                label=text("batch_prompts"), placeholder=text("batch_hint"), lines=5,
                max_lines=16, elem_id="batch-prompts",
            )  # fmt: skip
            with gr.Row(elem_classes="ls-line"):
                self.rows = slider(
                    1, MOST_HELD_OUT, value=20, step=1, label=text("batch_rows"),
                    info=text("batch_rows_why"), elem_id="batch-rows", scale=2, min_width=260,
                )  # fmt: skip
                self.take = gr.Button(
                    text("batch_take"), elem_id="batch-take", scale=0, min_width=180
                )
                self.start, self.stop = start_and_stop("batch_start")
            self.note = gr.HTML(elem_id="batch-note", padding=False)
            self.table = gr.HTML(elem_id="batch-table", padding=False)
            with gr.Row(elem_classes="ls-line", visible=False, elem_id="batch-out") as self.out:
                self.more = gr.Button(
                    text("batch_more"), size="sm", scale=0, elem_id="batch-more", visible=False
                )
                self.csv = gr.Button(text("votes_csv"), size="sm", scale=0, elem_id="batch-csv")
                self.jsonl = gr.Button("JSONL", size="sm", scale=0, elem_id="batch-jsonl")
            self.earlier = dropdown(
                [], label=text("batch_earlier"), value=None, visible=False, elem_id="batch-earlier"
            )
        self.file = handed("batch-file")
        self.batch = gr.State(None)
        self.outputs = [
            self.table, self.note, self.start, self.stop, self.out, self.more, self.batch,
            self.earlier,
        ]  # fmt: skip
        self._wire(controls)

    def _wire(self, controls: Sequence[Any]) -> None:
        run = controls[0]
        asking = self.start.click(self.ask, [self.prompts, *controls], self.outputs, **ENGINE)
        going_on = self.more.click(self.ask_rest, [self.batch, run], self.outputs, **ENGINE)
        for work in (asking, going_on):
            work.then(**ready_again([self.start, self.more], self.stop))
        self.stop.click(self.halt, None, None, queue=False)
        self.take.click(
            self.take_rows, [run, self.rows], [self.prompts, self.note], show_progress="hidden"
        )
        self.fold.expand(self.offer, None, self.earlier, show_progress="hidden")
        self.earlier.input(
            self.show, self.earlier, self.outputs,
            show_progress="hidden", trigger_mode="always_last",
        )  # fmt: skip
        for kind, button in (("csv", self.csv), ("jsonl", self.jsonl)):
            packing = button.click(_packing(kind), self.batch, self.file, show_progress="hidden")
            hand_out(packing, self.file)

    def take_rows(self, run: Any, rows: Any, request: gr.Request) -> Iterator[Any]:
        """Fill in questions of held-out rows, with the answers that the data has."""
        voice, studio = Voice(request), self.door.enter(request)
        if not run:
            yield gr.skip(), render.note(voice("no_runs_yet"), "warn")
            return
        try:
            count = min(max(int(rows), 1), MOST_HELD_OUT)
            for event in studio.measurements.held_out(str(run), count):
                if "result" not in event:
                    yield gr.skip(), render.waiting(event, voice)
                    continue
                yield as_lines(event["result"]), ""
        except StudioError as error:
            yield gr.skip(), render.problem(error, voice)
        except (TypeError, ValueError, OverflowError):
            yield gr.skip(), render.note(voice("not_numbers"), "warn")

    def halt(self, request: gr.Request) -> None:
        """Stop after the answers that are written now."""
        self.door.enter(request).answers.stop(asker(request, PLACE))

    def ask(self, request: gr.Request, prompts: Any, *values: Any) -> Iterator[Any]:
        """Put every prompt to everybody; what was answered stays, whatever ends it."""
        studio = self.door.enter(request)
        try:
            terms = Terms.read(studio, values)
            batch = studio.judging.begin(_asked(str(prompts or ""), terms))
        except StudioError as error:
            yield self._said(render.problem(error, Voice(request)))
            return
        yield from self._fill(request, batch, terms.name)

    def ask_rest(self, request: gr.Request, batch: Any, run: Any) -> Iterator[Any]:
        """Ask what is pending in the table that is shown, of those whom it names."""
        voice, studio = Voice(request), self.door.enter(request)
        if not isinstance(batch, Batch) or not run:
            key = "batch_nothing" if run else "no_runs_yet"
            yield self._said(render.note(voice(key), "warn"))
            return
        try:
            yield from self._fill(request, studio.judging.open(batch.name), str(run))
        except StudioError as error:
            yield self._said(render.problem(error, voice))

    def offer(self, request: gr.Request) -> Any:
        """Offer the tables there are."""
        found = choices(self.door.enter(request).judging.tables(), Voice(request))
        return gr.Dropdown(choices=found, visible=bool(found))

    def show(self, request: gr.Request, name: Any) -> list[Any]:
        """Show a table of before."""
        voice, studio = Voice(request), self.door.enter(request)
        try:
            batch = studio.judging.open(str(name or ""))
        except StudioError as error:
            return self._said(render.problem(error, voice))
        return self._idle(batch, studio, voice, note="")

    # Beneath

    def _fill(self, request: gr.Request, batch: Batch, run: str) -> Iterator[Any]:
        voice, studio = Voice(request), self.door.enter(request)
        off, on = gr.Button(interactive=False), gr.Button(interactive=True)
        skipped = [gr.skip()] * (len(self.outputs) - 2)
        yield [
            shown(batch, voice), render.busy(voice("compare_loading")), off, on,
            gr.Row(visible=False), off, batch, gr.Dropdown(interactive=False),
        ]  # fmt: skip
        note, due = "", 0.0
        try:
            for event in studio.judging.fill(batch, run, asker=asker(request, PLACE)):
                table = gr.skip()
                if time.monotonic() >= due:
                    table, due = shown(batch, voice), time.monotonic() + TABLE_EVERY_S
                yield [table, progress(event, voice), *skipped]
        except StudioError as error:
            note = render.problem(error, voice)
        if not note and batch.pending():
            note = render.note(voice("batch_stopped", n=batch.done), "warn")
        yield self._idle(batch, studio, voice, note=note)

    def _said(self, note: str) -> list[Any]:
        """Change nothing but the note."""
        skipped = [gr.skip()] * len(self.outputs)
        skipped[self.outputs.index(self.note)] = note
        return skipped

    def _idle(self, batch: Batch, studio: Studio, voice: Voice, *, note: str) -> list[Any]:
        found = choices(studio.judging.tables(), voice)
        return [
            shown(batch, voice), note, gr.skip(), gr.skip(), gr.Row(visible=True),
            gr.Button(visible=bool(batch.pending())), batch,
            gr.Dropdown(choices=found, value=batch.name, visible=True, interactive=True),
        ]  # fmt: skip


def _packing(kind: str) -> Callable[..., str]:
    def pack(batch: Any, request: gr.Request) -> str:
        if not isinstance(batch, Batch):
            raise gr.Error(Voice(request)("batch_nothing"), print_exception=False)
        file: Path = fresh_folder() / f"answers.{kind}"
        if kind == "csv":
            file.write_text(batch.csv(), encoding="utf-8-sig", newline="")
        else:
            file.write_text("".join(batch.jsonl()), encoding="utf-8")
        return str(file)

    return pack


def _asked(prompts: str, terms: Terms) -> Asked:
    """Return what the panes would be asked with each of the pasted prompts.

    Raises:
        StudioError: As `parse_prompts`.
    """
    return Asked(
        base=terms.base,
        contenders=terms.contenders,
        prompts=tuple(_with_system(prompt, terms.system) for prompt in parse_prompts(prompts)),
        sampling=terms.sampling,
        as_text=terms.as_text,
        apart=terms.apart,
        loaded=terms.loaded,
    )


def _with_system(prompt: Prompt, system: str) -> Prompt:
    has_own = any(message["role"] == "system" for message in prompt.messages)
    if has_own or not system.strip():
        return prompt
    said = {"role": "system", "content": system}
    return Prompt(messages=(said, *prompt.messages), reference=prompt.reference)  # type: ignore[arg-type]
