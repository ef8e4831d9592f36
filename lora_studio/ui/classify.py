"""The try-it box of a run that sorts texts: how likely each class is to both sides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.ui import numbers, render
from lora_studio.ui.controls import ENGINE
from lora_studio.ui.language import Voice, text
from lora_studio.ui.visitors import Door

MOST_CHARS = 20_000
MOST_CLASSES = 12
"""So many are listed; of the others the sum is told."""
MOST_EXAMPLES = 6
EXAMPLE_CHARS = 120

# A click on an example is the component's click, with the example's text.
ON_CLICK = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-text]');
  if (button) trigger('click', { text: button.dataset.text });
});
"""


class ClassifyBox:
    """Builds the box and answers its events.

    Args:
        door: Opens the studio of a request.
        run: The run that is asked.
    """

    def __init__(self, door: Door, run: gr.Dropdown) -> None:
        self.door = door
        with gr.Column(visible=False, elem_id="classify") as self.whole:
            with gr.Row(elem_classes="ls-line"):
                self.text = gr.Textbox(
                    label=text("classify_text"), placeholder=text("classify_hint"), lines=2,
                    max_lines=8, scale=6, elem_id="classify-text",
                )  # fmt: skip
                self.send = gr.Button(
                    text("classify_send"), variant="primary", elem_id="classify-send", scale=0,
                    min_width=120,
                )  # fmt: skip
            self.examples = gr.HTML(elem_id="classify-examples", js_on_load=ON_CLICK, padding=False)
            self.result = gr.HTML(elem_id="classify-result", padding=False)
            self.note = gr.HTML(elem_id="classify-note", padding=False)
        self._wire(run)

    def _wire(self, run: gr.Dropdown) -> None:
        inputs, outputs = [run, self.text], [self.result, self.note, self.send]
        asked: dict[str, Any] = {"trigger_mode": "always_last", **ENGINE}
        gr.on([self.send.click, self.text.submit], self.answer, inputs, outputs, **asked)
        self.examples.click(take, None, self.text, show_progress="hidden", queue=False).then(
            self.answer, inputs, outputs, **asked
        )

    @property
    def shown(self) -> list[Any]:
        """What `show` fills."""
        return [self.whole, self.text, self.examples, self.note, self.result]

    def show(self, prompts: Iterable[str], labels: Sequence[str], voice: Voice) -> list[Any]:
        """Show the box empty for an adapter that sorts texts into `labels`; hide it for another.

        Args:
            prompts: What it was tried on while it learned.
            labels: Its classes; none if it writes.
            voice: Speaks to the person.
        """
        if not labels:
            return [gr.Column(visible=False), *[gr.skip()] * 4]
        listed = examples(list(dict.fromkeys(prompts))[:MOST_EXAMPLES], voice)
        return [gr.Column(visible=True), "", listed, "", empty(labels, voice)]

    def answer(self, request: gr.Request, run: Any, asked: Any) -> Iterator[Any]:
        """Show how likely each class is for a text, to the base and to the adapter."""
        voice, studio = Voice(request), self.door.enter(request)
        words = str(asked or "").strip()
        if not run or not words or len(words) > MOST_CHARS:
            key = "no_runs_yet" if not run else "classify_first" if not words else "classify_long"
            yield gr.skip(), render.note(voice(key, most=MOST_CHARS), "warn"), gr.skip()
            return
        yield gr.skip(), render.busy(voice("compare_loading")), gr.Button(interactive=False)
        try:
            name = voice("adapter_named", run=run)
            for event in studio.answers.classify(str(run), words):
                if "labels" not in event:
                    yield gr.skip(), render.waiting(event, voice), gr.skip()
                else:
                    yield result(words, event, name, voice), "", gr.Button(interactive=True)
        except StudioError as error:
            yield "", render.problem(error, voice), gr.Button(interactive=True)


def take(event: gr.EventData) -> Any:
    """Return the text of the example that was clicked."""
    chosen = getattr(event, "text", None)
    return chosen[:MOST_CHARS] if isinstance(chosen, str) else gr.skip()


def examples(texts: Sequence[str], voice: Voice) -> str:
    """Return a button for each text that the run was tried on while it learned."""
    if not texts:
        return ""
    buttons = "".join(
        f'<button type="button" data-text="{escape(one, quote=True)}">'
        f"{escape(_shortened(one))}</button>"
        for one in texts
    )
    return f'<div class="ls-examples">{render.quiet(voice("classify_examples"))}{buttons}</div>'


def empty(labels: Sequence[str], voice: Voice) -> str:
    """Return what stands where the answer will be: which classes there are, what to do."""
    names = ", ".join(labels[:MOST_CLASSES])
    more = len(labels) - MOST_CLASSES
    listed = voice("classify_and_more", names=names, n=more) if more > 0 else names
    sentence = voice("classify_empty", n=len(labels), names=listed)
    return f'<p class="ls-classes-empty">{escape(sentence)}</p>'


def result(asked: str, found: Mapping[str, Any], name: str, voice: Voice) -> str:
    """Return both sides' probabilities as bars, in one order: the adapter's likeliest first.

    Args:
        asked: The text.
        found: `labels`, and under `base` and `adapter` their probabilities.
        name: What the adapter's side is called.
        voice: The page's language.
    """
    labels, adapter = found["labels"], found["adapter"]
    order = sorted(range(len(labels)), key=lambda at: -adapter[at])
    sides = "".join(
        f'<section class="side {side}"><h3>{escape(title)}</h3>'
        f"{render.quiet(why)}{_bars(labels, found[side], order, voice)}</section>"
        for side, title, why in (
            ("base", voice("base_side"), voice("classify_base_why")),
            ("adapter", name, voice("classify_adapter_why")),
        )
    )
    return (
        f'<div class="ls-classes" role="status"><blockquote>{escape(_shortened(asked, 300))}'
        f'</blockquote><div class="sides">{sides}</div></div>'
    )


def _bars(labels: Sequence[str], shares: Sequence[float], order: list[int], voice: Voice) -> str:
    top = max(range(len(shares)), key=shares.__getitem__)
    listed = order[:MOST_CLASSES]
    if top not in listed:
        listed[-1] = top
    bars = "".join(
        f"<li{' class=top' if at == top else ''}><span>{escape(labels[at])}</span>"
        f'<i><b style="width:{100 * shares[at]:.1f}%"></b></i>'
        f"<em>{numbers.percent(shares[at])}</em></li>"
        for at in listed
    )
    rest = len(labels) - len(listed)
    if not rest:
        return f"<ol>{bars}</ol>"
    share = numbers.percent(1 - sum(shares[at] for at in listed))
    return f"<ol>{bars}</ol>{render.quiet(voice('classify_rest', n=rest, share=share))}"


def _shortened(words: str, most: int = EXAMPLE_CHARS) -> str:
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"
