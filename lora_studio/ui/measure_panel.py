"""Numbers instead of impressions: base and adapter on rows that were never learned from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.measuring.wanted import Wanted
from lora_studio.ui import render
from lora_studio.ui.controls import ENGINE, ready_again, slider, start_and_stop
from lora_studio.ui.language import Voice, text
from lora_studio.ui.measured import measured
from lora_studio.ui.visitors import Door, asker

PLACE = "measure"


class MeasurePanel:
    """Builds the part that measures and answers its events.

    Args:
        door: Opens the studio of a request.
        run: The adapter that is measured.
    """

    def __init__(self, door: Door, run: gr.Dropdown) -> None:
        self.door = door
        with gr.Accordion(text("measure"), open=False, elem_id="measure") as self.part:
            with gr.Row(elem_classes="ls-line"):
                self.rows = slider(
                    8, 1024, value=64, step=8, label=text("measure_rows"),
                    info=text("measure_rows_why"), elem_id="measure-rows", min_width=220,
                )  # fmt: skip
                self.answers = slider(
                    0, 256, value=16, step=4, label=text("measure_answers"),
                    info=text("measure_answers_why"), elem_id="measure-answers", min_width=220,
                )  # fmt: skip
                self.match = gr.Textbox(
                    label=text("measure_match"), info=text("measure_match_why"),
                    placeholder=text("measure_match_hint"), elem_id="measure-match", min_width=220,
                )  # fmt: skip
            with gr.Row(elem_classes="ls-line"):
                self.start, self.stop = start_and_stop("measure_start")
            self.note = gr.HTML(elem_id="measure-note", padding=False)
            self.found = gr.HTML(elem_id="measure-found", padding=False)
            # The adapter that was measured last: another may be chosen by then.
            self.last = gr.State("")
        self._wire(run)

    def _wire(self, run: gr.Dropdown) -> None:
        measuring = self.start.click(
            self.measure, [run, self.rows, self.answers, self.match],
            [self.found, self.note, self.start, self.stop, self.last],
            **ENGINE,
        )  # fmt: skip
        measuring.success(
            self.settle, [run, self.last], [self.found, self.note], show_progress="hidden"
        )
        measuring.then(**ready_again([self.start], self.stop))
        self.stop.click(self.halt, None, self.note, cancels=[measuring], queue=False)
        gr.on(
            [run.change, self.part.expand], self.show, run, [self.found, self.note],
            show_progress="hidden",
        )  # fmt: skip

    def show(self, run: Any, request: gr.Request) -> tuple[str, str]:
        """Show what was measured before."""
        try:
            found = self.door.enter(request).measurements.read_all(str(run)) if run else []
        except StudioError:
            found = []
        return measured(found, str(run), Voice(request)), ""

    def settle(self, run: Any, last: Any, request: gr.Request) -> tuple[Any, Any]:
        """Show what is known of the adapter that is chosen now, if another was measured."""
        if not last or run == last:
            return gr.skip(), gr.skip()
        found, _ = self.show(run, request)
        sentence = Voice(request)("measure_elsewhere", name=last)
        return found, render.note(sentence, "good")

    def measure(
        self, run: Any, rows: Any, answers: Any, match: Any, request: gr.Request
    ) -> Iterator[Any]:
        """Measure an adapter; what is found is kept with it."""
        voice, studio = Voice(request), self.door.enter(request)
        off, on, unchanged = gr.Button(interactive=False), gr.Button(interactive=True), gr.skip()
        if not run:
            yield gr.skip(), render.note(voice("no_runs_yet"), "warn"), unchanged, unchanged, ""
            return
        yield gr.skip(), render.busy(voice("compare_loading")), off, on, ""
        try:
            wanted, who = _wanted(rows, answers, match), asker(request, PLACE)
            for event in studio.measurements.evaluate(str(run), wanted, asker=who):
                if "result" in event:
                    known = studio.measurements.read_all(str(run))
                    others = (one for one in known if one.rows_of)
                    found = measured([event["result"], *others], str(run), voice)
                    yield found, "", unchanged, unchanged, str(run)
                else:
                    told = render.waiting(event, voice, of=str(run))
                    yield gr.skip(), told, *[unchanged] * 3
        except StudioError as error:
            yield gr.skip(), render.problem(error, voice), unchanged, unchanged, ""

    def halt(self, request: gr.Request) -> str:
        """End the measurement; what was measured before stays."""
        self.door.enter(request).measurements.stop(asker(request, PLACE))
        sentence = StudioError("measuring.stopped").say(Voice(request).language)
        return render.note(sentence, "warn")


def _wanted(rows: Any, answers: Any, match: Any) -> Wanted:
    """Return what is to be measured.

    Raises:
        StudioError: If a value is no good.
    """
    try:
        return Wanted(rows=int(rows), answers=int(answers), match=str(match or "").strip())
    except (TypeError, ValueError, OverflowError) as error:
        raise StudioError("page.measure_no_number") from error
